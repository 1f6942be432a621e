// Publishes the events on its input, one without a name a line:
//   node producer.mjs BOOTSTRAP TOPIC SOURCE [wrong]
// The records are those of schemas/README.md, asyncapi.json and event.schema.json.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";
import kafkajs from "kafkajs";

const { Kafka, Partitioners, logLevel } = kafkajs;
const OBJECT_MAX_BYTES = 236;

// Returns the same name for every recurrence of an event.
function nameOf(event) {
  const texts = [
    event.executionId, event.metadata.namespace, event.involvedObject.namespace,
    event.involvedObject.name, event.reason, event.message, event.type, event.elemType,
    event.elemId, event.actionName,
  ];
  const hash = createHash("sha256").update(texts.join("\0"), "utf8").digest("hex").slice(0, 16);
  const object = Buffer.from(event.involvedObject.name, "utf8");
  let end = Math.min(object.length, OBJECT_MAX_BYTES);
  while (end < object.length && (object[end] & 0xc0) === 0x80) end--;
  return `${object.toString("utf8", 0, end)}.${hash}`;
}

const [bootstrap, topic, source, wrong] = process.argv.slice(2);
const messages = [];
// Not by readline, for which U+2028 ends a line too.
for (const line of (await text(process.stdin)).trim().split("\n")) {
  const event = { message: "", ...JSON.parse(line) };
  event.involvedObject = { namespace: event.metadata.namespace, ...event.involvedObject };
  event.metadata = { ...event.metadata, name: nameOf(event) };
  const sequence = String(messages.length + 1);
  messages.push({
    key: event.executionId,
    value: JSON.stringify(event),
    headers: {
      ce_specversion: "1.0",
      ce_type: "execution-events.occurrence.v1",
      ce_source: source,
      ce_id: sequence,
      ce_sequence: sequence,
      "content-type": "application/json",
    },
  });
}

const settings = { idempotent: true, createPartitioner: Partitioners.DefaultPartitioner };
if (wrong) settings.createPartitioner = Partitioners.LegacyPartitioner;
const producer = new Kafka({ brokers: [bootstrap], logLevel: logLevel.ERROR }).producer(settings);
await producer.connect();
await producer.send({ topic, messages });
await producer.disconnect();
