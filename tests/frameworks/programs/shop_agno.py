"""A shop's agent on Agno: python shop_agno.py [QUESTION]"""

import os
import sys

from agno.agent import Agent
from agno.models.openai import OpenAIChat


def stock(sku: str) -> str:
    """How many of an article are there."""
    return f"{sku}: 3"


def ask(question: str) -> str:
    model = OpenAIChat(id="m", base_url=os.environ["OPENAI_BASE_URL"], max_retries=0)
    agent = Agent(name="shop", model=model, tools=[stock], instructions="Be brief.")
    return agent.run(question).content


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
