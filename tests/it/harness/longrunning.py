"""Follows an operation to its end with Google's generic client (google-api-core), and lists all operations."""

import json
import sys

import grpc
from google.api_core import operations_v1

asked = json.load(sys.stdin)
call = [("authorization", "Bearer " + asked["token"])]
with grpc.insecure_channel(asked["address"]) as channel:
    client = operations_v1.OperationsClient(channel)
    while not (operation := client.get_operation(asked["name"], metadata=call)).done:
        pass
    listed = [each.name for each in client.list_operations("operations", "", metadata=call)]
json.dump(
    {"done": operation.done, "listed": listed, "type": operation.response.type_url.rpartition("/")[2]},
    sys.stdout,
)
