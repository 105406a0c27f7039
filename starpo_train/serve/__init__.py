"""An OpenAI-compatible server around a transformers causal language model.

chat request (requests) -> prompt ids (template) -> sampled ids (engine, kv, sampling)
-> text (detokenize) -> reasoning, content, tool calls (toolparse) -> chat response (responses);
app joins them behind HTTP, server runs it, process runs it beside this process.
"""
