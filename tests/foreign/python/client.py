"""A Python client that knows Carillon only by its proto files.

The messages and stubs are generated into a temporary folder by grpcio-tools; webhooks are verified by `standardwebhooks`
and read by `cloudevents`. Prints one JSON line.

Environment: CARILLON_PUBLIC, CARILLON_INTERNAL (host:port), CARILLON_KEY, CARILLON_APP, CARILLON_CA, CARILLON_CERT,
CARILLON_CERT_KEY (PEM files).
"""

import json
import os
import queue
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc
from standardwebhooks import Webhook

DEADLINE_SECONDS = 20
PROTO = Path(__file__).resolve().parents[3] / "proto"
NAME = "CUSTOM_FOREIGN_PYTHON"


def generate(folder: str) -> None:
    """Generates messages and stubs of every proto file, and makes them importable."""
    import grpc_tools

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    files = [str(path) for path in PROTO.rglob("*.proto")]
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main([*arguments, *files]) != 0:
        sys.exit("the proto files do not compile")
    sys.path.insert(0, folder)


def receiver() -> tuple[ThreadingHTTPServer, queue.Queue]:
    """Starts a receiver that puts every request into a queue."""
    arrived: queue.Queue = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            arrived.put((self.path, headers, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, arrived


def read_file(variable: str) -> bytes:
    return Path(os.environ[variable]).read_bytes()


def reason_of(error: grpc.RpcError) -> str:
    """The reason in the rich status of an error."""
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return "none"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(folder)
        run()


def run() -> None:
    from carillon.internal.v1 import publish_pb2, publish_pb2_grpc
    from carillon.v1 import event_service_pb2, event_service_pb2_grpc, event_type_pb2, event_type_pb2_grpc
    from carillon.v1 import subscription_pb2
    from carillon.cloudevents.v1 import cloudevents_pb2

    metadata = [("authorization", f"Bearer {os.environ['CARILLON_KEY']}")]
    options = {"metadata": metadata, "timeout": DEADLINE_SECONDS}
    public = grpc.insecure_channel(os.environ["CARILLON_PUBLIC"])
    credentials = grpc.ssl_channel_credentials(
        read_file("CARILLON_CA"), read_file("CARILLON_CERT_KEY"), read_file("CARILLON_CERT")
    )
    internal = grpc.secure_channel(
        os.environ["CARILLON_INTERNAL"], credentials, [("grpc.ssl_target_name_override", "localhost")]
    )
    types = event_type_pb2_grpc.EventTypeServiceStub(public)
    events = event_service_pb2_grpc.EventServiceStub(public)
    publisher = publish_pb2_grpc.PublishServiceStub(internal)
    server, arrived = receiver()

    schema = json.dumps({"type": "object", "required": ["n"]})
    types.CreateEventType(event_type_pb2.CreateEventTypeRequest(name=NAME, schema=schema), **options)
    secrets = {}
    modes = {"/structured": subscription_pb2.WEBHOOK_MODE_STRUCTURED, "/binary": subscription_pb2.WEBHOOK_MODE_BINARY}
    for path, mode in modes.items():
        webhook = subscription_pb2.WebhookTarget(uri=f"http://127.0.0.1:{server.server_port}{path}", mode=mode)
        request = event_service_pb2.SubscribeRequest(
            app=os.environ["CARILLON_APP"], event_type=NAME, target=subscription_pb2.Target(webhook=webhook)
        )
        secrets[path] = events.Subscribe(request, **options).signing_secret

    filters = [event_service_pb2.WatchFilter(name="mine", event_types=[NAME])]
    watch = events.Watch(event_service_pb2.WatchRequest(filters=filters, earliest=True), **options)
    data = {"n": 1, "text": "größer ✓"}
    event = cloudevents_pb2.CloudEvent(source="/python", spec_version="1.0", type=NAME, text_data=json.dumps(data))
    published = publisher.Publish(
        publish_pb2.PublishRequest(event=event, idempotency_key="python-1"), timeout=DEADLINE_SECONDS
    )

    received = {}
    for _ in modes:
        path, headers, body = arrived.get(timeout=DEADLINE_SECONDS)
        Webhook(secrets[path]).verify(body, headers)
        parsed = from_http_event(HTTPMessage(headers=headers, body=body), JSONFormat())
        received[path] = {
            "id": parsed.get_id(),
            "type": parsed.get_type(),
            "data": parsed.get_data(),
            "webhookId": headers["webhook-id"],
        }
    watched = next(message for message in watch if message.WhichOneof("kind") == "events").events.events[0]
    watch.cancel()
    listed = events.ListEvents(event_service_pb2.ListEventsRequest(event_types=[NAME]), **options)
    event.text_data = "{}"
    try:
        publisher.Publish(publish_pb2.PublishRequest(event=event), timeout=DEADLINE_SECONDS)
        refused = "accepted"
    except grpc.RpcError as error:
        refused = reason_of(error)

    result = {
        "eventId": published.event_id,
        "position": published.position,
        "invocations": len(published.invocations),
        "structured": received["/structured"],
        "binary": received["/binary"],
        "watched": {"id": watched.event.id, "filters": list(watched.filters)},
        "listed": [event.id for event in listed.events],
        "refused": refused,
    }
    print(json.dumps(result), flush=True)
    server.shutdown()


if __name__ == "__main__":
    main()
