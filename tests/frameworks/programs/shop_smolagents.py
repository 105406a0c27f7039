"""A shop's agent on smolagents: python shop_smolagents.py [QUESTION]"""

import os
import sys

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def stock(sku: str) -> str:
    """How many of an article are there.

    Args:
        sku: The article.
    """
    return f"{sku}: 3"


def ask(question: str) -> str:
    model = OpenAIModel(model_id="m", api_base=os.environ["OPENAI_BASE_URL"], api_key="none")
    agent = ToolCallingAgent(tools=[stock], model=model, name="shop", verbosity_level=0)
    return agent.run(question)


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
