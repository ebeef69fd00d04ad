"""Makes calls with an official Python client of Alibaba Cloud: reads them from standard input, and prints the results.

Input: {"package", "endpoint", "calls": [call…]}; the package is the client's. There are three kinds of calls:
  {"method": "synchronize_app", "request": {…}}  a method of the client and its request, by the names of the API
  {"action": "SynchronizeApp", "version": "2023-07-01", "query": {…}}  any action of any version
  {"raw": "GET", "target": "/?…", "headers": {…}}  an unsigned request
The first two take "key": [id, secret] or [id, secret, token], "async": true, and "headers", which are signed too.
"""

import asyncio
import importlib
import json
import sys
import urllib.error
import urllib.request

from alibabacloud_tea_openapi import utils_models
from darabonba.runtime import RuntimeOptions
from Tea.exceptions import TeaException


def client(endpoint, call):
    names = ["access_key_id", "access_key_secret", "security_token"]
    keys = dict(zip(names, call["key"]))
    return Client(utils_models.Config(endpoint=endpoint, protocol="HTTP", **keys))


def call_client(endpoint, call):
    runtime = RuntimeOptions(extends_parameters={"headers": call.get("headers", {})})
    runtime.extends_parameters = utils_models.GlobalParameters(headers=call.get("headers", {}))
    api = client(endpoint, call)
    if "action" in call:
        params = utils_models.Params(
            action=call["action"], version=call["version"], protocol="HTTP", pathname="/", method=call.get("http", "POST"),
            auth_type="AK", style="RPC", req_body_type="formData", body_type="json",
        )
        request = utils_models.OpenApiRequest(query=call.get("query", {}), body=call.get("form"))
        return api.call_api(params, request, runtime)
    name = call["method"]
    kind = "".join(part.capitalize() for part in name.split("_")) + "Request"
    request = getattr(models, kind)().from_map(call["request"])
    if call.get("async"):
        return asyncio.run(getattr(api, f"{name}_with_options_async")(request, runtime)).to_map()
    return getattr(api, f"{name}_with_options")(request, runtime).to_map()


def raw(endpoint, call):
    request = urllib.request.Request(
        f"http://{endpoint}{call['target']}", method=call["raw"], headers=call.get("headers", {})
    )
    try:
        with urllib.request.urlopen(request) as response:
            return {"statusCode": response.status, "body": json.load(response)}
    except urllib.error.HTTPError as error:
        return {"statusCode": error.code, "body": json.load(error)}


def result(endpoint, call):
    if "raw" in call:
        return raw(endpoint, call)
    try:
        return call_client(endpoint, call)
    except Exception as error:  # Any exception of the client is a result.
        inner = getattr(error, "inner_exception", None) or error
        error_fields = {"raised": type(inner).__name__, "message": str(inner)}
        for name in ["code", "status_code", "request_id", "retry_after", "data"]:
            error_fields[name] = getattr(inner, name, None)
        return error_fields


job = json.load(sys.stdin)
models = importlib.import_module(f"{job['package']}.models")
Client = importlib.import_module(f"{job['package']}.client").Client
json.dump([result(job["endpoint"], call) for call in job["calls"]], sys.stdout, default=str)
