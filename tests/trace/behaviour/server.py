"""A model server whose answer depends on the model's name alone; it logs requests to the byte."""

import json

from servers_scripted import Answer, AnswerServer, Request

from starpo_trace.testing import Reply, ToolCall, build_chunks, build_completion

_REPLIES = {
    "text": Reply(content="forty two", num_stream_chunks=3),
    "tool": Reply(
        reasoning_content="hm",
        tool_calls=[ToolCall(id="c1", name="stock", arguments='{"sku":  1e0}')],
        logprobs=[-0.5],
        token_ids=[4],
        prompt_token_ids=[1, 2],
    ),
}


class BehaviourServer(AnswerServer):
    """Answers by model: text, tool, error, nonsense, cut, hang, stall."""

    def choose_answer(self, request: Request) -> Answer:
        """Log a request and pick the answer to it."""
        self.requests.append(request)
        body = json.loads(request.body)
        model, is_stream = body["model"], body.get("stream")
        if model == "error":
            return Answer(chunks=[b'{"error": {"message": "no", "code": "x"}}'], status=500)
        if model == "nonsense":
            return Answer(chunks=[b"<html>"], content_type="text/html")
        reply = _REPLIES.get(model, _REPLIES["text"])
        if not is_stream:
            stall = 0 if model == "hang" else None
            chunks = [json.dumps(build_completion(reply, model)).encode()]
            return Answer(chunks=chunks, stall_after=stall)
        chunks = [b"data: %s\n\n" % json.dumps(c).encode() for c in build_chunks(reply, model)]
        return Answer(
            chunks=chunks[:2] if model == "cut" else [*chunks, b"data: [DONE]\n\n"],
            content_type="text/event-stream",
            is_cut=model == "cut",
            stall_after=1 if model == "stall" else None,
        )

    def read_log(self) -> list[tuple[str, list[tuple[str, str]], bytes]]:
        """Path, headers in order and body of each request; forgets them."""
        log = [(each.path, list(each.headers.items()), each.body) for each in self.requests]
        self.requests.clear()
        return log
