"""The APIs that cross the endpoint: how a body is read, what others call a chat, and our answers as theirs.

Each is an adapter: its request becomes a `ChatRequest`, and the answers its objects and events. None keeps anything.
"""
