"""Agent call -> spans: patches see the call, one owner makes the span, rewards join it."""
