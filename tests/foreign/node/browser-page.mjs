// What runs in the page: a client generated from the proto files watches by gRPC-Web, comes back by itself after a break, and the
// same stream is watched as a WebSocket. `report` is given by the page's owner.

import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { EventService } from "carillon/v1/event_service_pb";

const kind = (name) => ({ name, filter: `data.kind == '${name}'` });
const headers = (key) => ({ authorization: `Bearer ${key}` });
const client = (url) => createClient(EventService, createGrpcWebTransport({ baseUrl: url }));

const watch = { id: "", cursor: "" };

// Watches at one address after the other, from where the last message left off, for as long as the page lives.
globalThis.follow = async (urls, key) => {
  for (let turn = 0; ; turn++) {
    const url = urls[turn % urls.length];
    const request = watch.id === ""
      ? { filters: [kind("a")], start: { case: "now", value: true } }
      : { start: { case: "watch", value: watch.id }, resumeCursor: watch.cursor };
    try {
      for await (const message of client(url).watch(request, { headers: headers(key) })) {
        watch.cursor = message.cursor;
        const { case: name, value } = message.kind;
        if (name === "created") {
          watch.id = value.watchId;
          await report({ created: { url, version: Number(value.filterVersion) } });
        } else if (name === "events") {
          const events = value.events.map(({ event, filters }) => ({ position: Number(event.position), filters }));
          await report({ events });
        } else if (name === "filterChanged") {
          await report({ changed: Number(value.filterVersion) });
        }
      }
    } catch (error) {
      await report({ broken: String(error) });
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
};

globalThis.update = async (url, key, add, version) => {
  const request = { watchId: watch.id, add: add.map(kind), filterVersion: BigInt(version) };
  const answer = await client(url).updateWatch(request, { headers: headers(key) });
  return Number(answer.filterVersion);
};

globalThis.openSocket = (url, key) => {
  const socket = new WebSocket(`${url.replace(/^http/, "ws")}/v1/watch`, ["carillon.watch.v1", `carillon.bearer.${key}`]);
  socket.onopen = () => socket.send(JSON.stringify({ filters: [kind("a")], earliest: true }));
  socket.onmessage = ({ data }) => report({ socket: JSON.parse(data) });
  socket.onclose = ({ code, reason, wasClean }) => report({ closed: { code, reason, wasClean } });
  globalThis.socket = socket;
};

globalThis.closeSocket = (code) => globalThis.socket.close(code);

globalThis.changeSocket = (add) => globalThis.socket.send(JSON.stringify({ add: add.map(kind) }));
