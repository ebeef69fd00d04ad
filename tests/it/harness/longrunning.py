"""Polls an operation until it is done with Google's generic client (google-api-core), and lists all operations."""

import json
import sys

import grpc
from google.api_core import operations_v1

job = json.load(sys.stdin)
call = [("authorization", "Bearer " + job["token"])]
with grpc.insecure_channel(job["address"]) as channel:
    client = operations_v1.OperationsClient(channel)
    while not (operation := client.get_operation(job["name"], metadata=call)).done:
        pass
    listed = [each.name for each in client.list_operations("operations", "", metadata=call)]
json.dump(
    {"done": operation.done, "listed": listed, "type": operation.response.type_url.rpartition("/")[2]},
    sys.stdout,
)
