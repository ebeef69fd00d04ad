"""Calls of an official Python client of Alibaba Cloud, as they are told on standard input; what came of them, on standard output.

Input: {"package", "endpoint", "calls": [call…]}; the package is the client's. A call is of one of three kinds:
  {"method": "synchronize_app", "request": {…}}  a method of the client and its request, by the names of the API
  {"action": "SynchronizeApp", "version": "2023-07-01", "query": {…}}  any action of any version
  {"raw": "GET", "target": "/?…", "headers": {…}}  a request that nobody signs
The first two take "key": [id, secret] or [id, secret, token], "async": true, and "headers" that are signed with the others.
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


def answered(endpoint, call):
    runtime = RuntimeOptions(extends_parameters={"headers": call.get("headers", {})})
    runtime.extends_parameters = utils_models.GlobalParameters(headers=call.get("headers", {}))
    ask = client(endpoint, call)
    if "action" in call:
        params = utils_models.Params(
            action=call["action"], version=call["version"], protocol="HTTP", pathname="/", method=call.get("http", "POST"),
            auth_type="AK", style="RPC", req_body_type="formData", body_type="json",
        )
        request = utils_models.OpenApiRequest(query=call.get("query", {}), body=call.get("form"))
        return ask.call_api(params, request, runtime)
    name = call["method"]
    kind = "".join(part.capitalize() for part in name.split("_")) + "Request"
    request = getattr(models, kind)().from_map(call["request"])
    if call.get("async"):
        return asyncio.run(getattr(ask, f"{name}_with_options_async")(request, runtime)).to_map()
    return getattr(ask, f"{name}_with_options")(request, runtime).to_map()


def raw(endpoint, call):
    request = urllib.request.Request(
        f"http://{endpoint}{call['target']}", method=call["raw"], headers=call.get("headers", {})
    )
    try:
        with urllib.request.urlopen(request) as response:
            return {"statusCode": response.status, "body": json.load(response)}
    except urllib.error.HTTPError as error:
        return {"statusCode": error.code, "body": json.load(error)}


def tell(endpoint, call):
    if "raw" in call:
        return raw(endpoint, call)
    try:
        return answered(endpoint, call)
    except Exception as error:  # What the client raises is what is looked at.
        inner = getattr(error, "inner_exception", None) or error
        told = {"raised": type(inner).__name__, "message": str(inner)}
        for name in ["code", "status_code", "request_id", "retry_after", "data"]:
            told[name] = getattr(inner, name, None)
        return told


asked = json.load(sys.stdin)
models = importlib.import_module(f"{asked['package']}.models")
Client = importlib.import_module(f"{asked['package']}.client").Client
json.dump([tell(asked["endpoint"], call) for call in asked["calls"]], sys.stdout, default=str)
