// A Node client that knows Carillon only by its proto files: grpc-js with definitions loaded at run time, webhooks
// verified by `standardwebhooks` and read by `cloudevents`. Prints one JSON line.
//
// Environment: CARILLON_PUBLIC, CARILLON_INTERNAL (host:port), CARILLON_KEY, CARILLON_APP, CARILLON_CA, CARILLON_CERT,
// CARILLON_CERT_KEY (PEM files).

import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";
import { HTTP } from "cloudevents";
import { Webhook } from "standardwebhooks";

const env = (name) => process.env[name] ?? fail(`${name} is not set`);
const fail = (text) => {
  throw new Error(text);
};
const protoDir = fileURLToPath(new URL("../../../proto", import.meta.url));
const definition = protoLoader.loadSync(
  ["carillon/v1/event_service.proto", "carillon/v1/event_type.proto", "carillon/v1/invocation.proto",
    "carillon/internal/v1/publish.proto"],
  { includeDirs: [protoDir], keepCase: false, longs: Number, enums: String, oneofs: true },
);
const { carillon } = grpc.loadPackageDefinition(definition);

const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${env("CARILLON_KEY")}`);
const plain = grpc.credentials.createInsecure();
const mutual = grpc.credentials.createSsl(
  readFileSync(env("CARILLON_CA")), readFileSync(env("CARILLON_CERT_KEY")), readFileSync(env("CARILLON_CERT")),
);
const types = new carillon.v1.EventTypeService(env("CARILLON_PUBLIC"), plain);
const events = new carillon.v1.EventService(env("CARILLON_PUBLIC"), plain);
const publisher = new carillon.internal.v1.PublishService(env("CARILLON_INTERNAL"), mutual, {
  "grpc.ssl_target_name_override": "localhost",
});

const call = (client, method, request) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 20_000;
    client[method](request, metadata, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });

// google.rpc, as far as an error of Carillon needs it.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`).root;
const errorInfo = (error) => {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const status = rpc.lookupType("google.rpc.Status").decode(bytes);
  const any = status.details.find((detail) => detail.typeUrl.endsWith("google.rpc.ErrorInfo"));
  return rpc.lookupType("google.rpc.ErrorInfo").decode(any.value);
};

// A receiver: keeps what arrives, per path.
const arrived = new Map();
const receiver = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    arrived.get(request.url)?.resolve({ headers: request.headers, body: Buffer.concat(chunks).toString("utf8") });
    response.writeHead(204).end();
  });
});
receiver.listen(0, "127.0.0.1");
await once(receiver, "listening");
const expectAt = (path) => {
  const promise = new Promise((resolve) => arrived.set(path, { resolve }));
  return promise;
};

const name = "CUSTOM_FOREIGN_NODE";
await call(types, "createEventType", { name, schema: JSON.stringify({ type: "object", required: ["n"] }) });
const subscribe = (path, mode, signatureScheme) =>
  call(events, "subscribe", {
    app: env("CARILLON_APP"), eventType: name, signatureScheme,
    target: { webhook: { uri: `http://127.0.0.1:${receiver.address().port}${path}`, mode } },
  });
const structuredArrives = expectAt("/structured");
const binaryArrives = expectAt("/binary");
const publicArrives = expectAt("/public");
const structured = await subscribe("/structured", "WEBHOOK_MODE_STRUCTURED");
const binary = await subscribe("/binary", "WEBHOOK_MODE_BINARY");
const publicKey = (await subscribe("/public", "WEBHOOK_MODE_RAW", "SIGNATURE_SCHEME_V1A")).publicKey;

const watch = events.watch({ filters: [{ name: "mine", eventTypes: [name] }], earliest: true }, metadata);
const watched = new Promise((resolve, reject) => {
  watch.on("data", (message) => message.events && resolve({ ...message.events.events[0], cursor: message.cursor }));
  watch.on("error", reject);
});

const data = { n: 1, text: "größer ✓" };
const published = await call(publisher, "publish", {
  event: { source: "/node", specVersion: "1.0", type: name, textData: JSON.stringify(data) },
  idempotencyKey: "node-1",
});

const check = ({ headers, body }, secret) => {
  new Webhook(secret).verify(body, headers);
  const event = HTTP.toEvent({ headers, body });
  return { id: event.id, type: event.type, data: event.data, webhookId: headers["webhook-id"] };
};
// Scheme v1a by nothing but what Node brings: the key is wrapped as SubjectPublicKeyInfo of RFC 8410.
const checkPublic = ({ headers, body }) => {
  const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), Buffer.from(publicKey.slice("whpk_".length), "base64")]);
  const key = createPublicKey({ key: spki, format: "der", type: "spki" });
  const [version, signature] = headers["webhook-signature"].split(",");
  const message = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`;
  return version === "v1a" && verify(null, Buffer.from(message), key, Buffer.from(signature, "base64"));
};
const seen = await watched;
watch.on("error", () => {});
watch.cancel();
const listed = await call(events, "listEvents", { cursor: "", eventTypes: [name] });
const failure = await call(publisher, "publish", {
  event: { source: "/node", specVersion: "1.0", type: name, textData: "{}" },
}).catch(errorInfo);

console.log(JSON.stringify({
  eventId: published.eventId,
  position: published.position,
  invocations: published.invocations.length,
  structured: check(await structuredArrives, structured.signingSecret),
  binary: check(await binaryArrives, binary.signingSecret),
  public: checkPublic(await publicArrives),
  watched: { id: seen.event.id, filters: seen.filters },
  listed: listed.events.map((event) => event.id),
  refused: failure.reason,
}));
receiver.close();
receiver.closeAllConnections();
for (const client of [types, events, publisher]) client.close();
