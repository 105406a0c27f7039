"""OTLP over HTTP and gRPC -> the local trace store; success is answered when it is on disk."""
