"""The service: a control process that talks, and worker processes that hold warm models and compute.

Only `worker` touches torch. Clients come in through `client` alone.
"""
