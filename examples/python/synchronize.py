"""Synchronizes an image to regions and prints the progress, with grpcio alone.

    pip install grpcio grpcio-tools googleapis-common-protos
    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/appferry/v1/*.proto
    APPFERRY_TOKEN=… python examples/python/synchronize.py APP_ID [REGION]…
"""

import os
import sys
import uuid

import grpc
from google.rpc import error_details_pb2, status_pb2

from appferry.v1 import app_sync_pb2, app_sync_pb2_grpc, error_pb2

# UNAVAILABLE is retried; the client token makes that safe even if the first call was accepted and its response lost.
RETRIES = """{"methodConfig": [{
    "name": [{"service": "appferry.v1.AppSyncService"}],
    "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
    }
}]}"""


def describe(error):
    """Describes an error by its row of the error table and its request id."""
    status = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if status is None:
        return f"{error.code().name}: {error.details()}"
    info, detail = error_details_pb2.ErrorInfo(), error_pb2.ErrorDetail()
    for any_detail in status_pb2.Status.FromString(status).details:
        any_detail.Unpack(info) or any_detail.Unpack(detail)
    return f"{info.reason}: {detail.message} (request {detail.request_id})"


def main(app_id, regions):
    endpoint = os.environ.get("APPFERRY_ENDPOINT", "http://127.0.0.1:50051").removeprefix("http://")
    call = {"metadata": [("authorization", "Bearer " + os.environ["APPFERRY_TOKEN"])]}
    with grpc.insecure_channel(endpoint, options=[("grpc.service_config", RETRIES)]) as channel:
        client = app_sync_pb2_grpc.AppSyncServiceStub(channel)
        request = app_sync_pb2.SynchronizeAppRequest(
            app_id=app_id, target_region_ids=regions, client_token=str(uuid.uuid4())
        )
        accepted = client.SynchronizeApp(request, timeout=30, **call)
        print("accepted as", accepted.request_id)
        watch = app_sync_pb2.WatchSynchronizationRequest(request_id=accepted.request_id)
        state = None
        for snapshot in client.WatchSynchronization(watch, **call):
            name = app_sync_pb2.RegionState.Name
            states = [
                f"{region.region_id} {name(region.state).removeprefix('REGION_STATE_')}"
                for region in snapshot.synchronization.regions
            ]
            print(", ".join(states))
            state = snapshot.synchronization.state
    return state == app_sync_pb2.SYNCHRONIZATION_STATE_SUCCEEDED


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: synchronize.py APP_ID [REGION]…")
    try:
        sys.exit(0 if main(sys.argv[1], sys.argv[2:]) else 1)
    except grpc.RpcError as error:
        sys.exit(describe(error))
