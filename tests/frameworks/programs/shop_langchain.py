"""A shop's agent on LangChain: python shop_langchain.py [QUESTION]"""

import sys

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI


def stock(sku: str) -> str:
    """How many of an article are there."""
    return f"{sku}: 3"


def ask(question: str) -> str:
    model = ChatOpenAI(model="m", max_retries=0)
    agent = create_agent(model, [stock], system_prompt="Be brief.", name="shop")
    result = agent.invoke({"messages": [{"role": "user", "content": question}]})
    return result["messages"][-1].content


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
