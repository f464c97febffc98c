"""The service: a control process that talks to clients, and worker processes that hold warm models and compute.

Clients come in through `client` (and `protocol`, for the messages' types); only `worker` imports torch.
"""
