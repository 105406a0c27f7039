"""A shop's agent on the OpenAI Agents SDK: python shop_openai_agents.py [QUESTION]"""

import sys

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool
from openai import AsyncOpenAI


@function_tool
def stock(sku: str) -> str:
    """How many of an article are there."""
    return f"{sku}: 3"


def ask(question: str) -> str:
    model = OpenAIChatCompletionsModel("m", AsyncOpenAI(max_retries=0))
    agent = Agent(name="shop", instructions="Be brief.", model=model, tools=[stock])
    return Runner.run_sync(agent, question).final_output


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
