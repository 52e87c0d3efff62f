// A browser-like client: gRPC-Web over fetch. Streams a Watch until it has seen as many events as asked for, makes a
// preflight, and reads an error from its trailer. Prints "ready" when the watch exists, then one JSON line.
//
// Environment: CARILLON_PUBLIC (host:port), CARILLON_KEY, CARILLON_ORIGIN, CARILLON_EVENTS (how many).

import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";

const base = `http://${process.env.CARILLON_PUBLIC}`;
const origin = process.env.CARILLON_ORIGIN;
const root = new protobuf.Root();
const protoDir = fileURLToPath(new URL("../../../proto/", import.meta.url));
root.resolvePath = (_origin, target) => (target.startsWith("google/protobuf/") ? target : protoDir + target);
await root.load("carillon/v1/event_service.proto");
const type = (name) => root.lookupType(`carillon.v1.${name}`);

const post = (method, request, signal) => {
  const body = type(request.name).encode(type(request.name).fromObject(request.value)).finish();
  const frame = Buffer.alloc(5 + body.length);
  frame.writeUInt32BE(body.length, 1);
  frame.set(body, 5);
  return fetch(`${base}/carillon.v1.EventService/${method}`, {
    method: "POST", body: frame, signal,
    headers: {
      "content-type": "application/grpc-web+proto", "x-grpc-web": "1", origin,
      authorization: `Bearer ${process.env.CARILLON_KEY}`,
    },
  });
};

// Yields [isTrailer, bytes] for each frame of an answer.
async function* frames(response) {
  let rest = Buffer.alloc(0);
  for await (const chunk of response.body) {
    rest = Buffer.concat([rest, chunk]);
    while (rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
      const end = 5 + rest.readUInt32BE(1);
      yield [(rest[0] & 0x80) !== 0, rest.subarray(5, end)];
      rest = rest.subarray(end);
    }
  }
}

const preflight = await fetch(`${base}/carillon.v1.EventService/Watch`, {
  method: "OPTIONS",
  headers: {
    origin, "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-grpc-web",
  },
});

const abort = new AbortController();
const wanted = Number(process.env.CARILLON_EVENTS);
const positions = [];
const response = await post("Watch", { name: "WatchRequest", value: { now: true } }, abort.signal);
for await (const [isTrailer, bytes] of frames(response)) {
  if (isTrailer) throw new Error(`the stream ended: ${bytes.toString()}`);
  const message = type("WatchResponse").decode(bytes);
  if (message.kind === "created") console.log("ready");
  if (message.kind === "events") positions.push(...message.events.events.map(({ event }) => Number(event.position)));
  if (positions.length >= wanted) break;
}
abort.abort();

// An error comes in a trailer frame, or in the headers where there is no body at all.
let status = null;
const refused = await post("ListEvents", { name: "ListEventsRequest", value: { cursor: "not a cursor" } });
status = refused.headers.get("grpc-status");
let exposesDetails = refused.headers.has("grpc-status-details-bin");
for await (const [isTrailer, bytes] of frames(refused)) {
  if (!isTrailer) continue;
  const trailer = bytes.toString();
  status = /grpc-status: ?(\d+)/i.exec(trailer)?.[1] ?? status;
  exposesDetails ||= /grpc-status-details-bin:/i.test(trailer);
}

console.log(JSON.stringify({
  positions,
  contentType: response.headers.get("content-type"),
  allowOrigin: response.headers.get("access-control-allow-origin"),
  preflightStatus: preflight.status,
  preflightOrigin: preflight.headers.get("access-control-allow-origin"),
  refusedStatus: status,
  exposesDetails,
}));
process.exit(0);
