"""An OpenAI-compatible server around a transformers causal language model.

chat request (protocol) -> prompt ids (template) -> sampled ids (engine, kv, sampling)
-> text (detokenize) -> reasoning, content, tool calls (toolparse) -> chat response (protocol)
"""
