"""A shop's agent on Pydantic AI: python shop_pydantic_ai.py [QUESTION]"""

import sys

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def stock(sku: str) -> str:
    """How many of an article are there."""
    return f"{sku}: 3"


def ask(question: str) -> str:
    model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=AsyncOpenAI(max_retries=0)))
    agent = Agent(model, name="shop", instructions="Be brief.", tools=[stock])
    return agent.run_sync(question).output


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
