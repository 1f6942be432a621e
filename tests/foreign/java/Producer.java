import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Publishes the events on its input, one without a name a line: Producer BOOTSTRAP TOPIC SOURCE.
 *
 * <p>The records are those of schemas/README.md, asyncapi.json and event.schema.json.
 */
public class Producer {
    private static final int OBJECT_MAX_BYTES = 236;

    public static void main(String[] args) throws Exception {
        Map<String, Object> settings =
                Map.of(
                        "bootstrap.servers", args[0],
                        "acks", "all",
                        "enable.idempotence", "true",
                        "delivery.timeout.ms", "2147483647");
        var mapper = new ObjectMapper();
        var bytes = new ByteArraySerializer();
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer = new KafkaProducer<byte[], byte[]>(settings, bytes, bytes);
                var lines = new BufferedReader(new InputStreamReader(System.in, UTF_8))) {
            for (String line; (line = lines.readLine()) != null; ) {
                var event = (ObjectNode) mapper.readTree(line);
                complete(event);
                var record =
                        new ProducerRecord<byte[], byte[]>(
                                args[1],
                                event.get("executionId").textValue().getBytes(UTF_8),
                                mapper.writeValueAsBytes(event));
                String sequence = String.valueOf(sent.size() + 1);
                String[][] headers = {
                    {"ce_specversion", "1.0"},
                    {"ce_type", "execution-events.occurrence.v1"},
                    {"ce_source", args[2]},
                    {"ce_id", sequence},
                    {"ce_sequence", sequence},
                    {"content-type", "application/json"},
                };
                for (var header : headers) {
                    record.headers().add(header[0], header[1].getBytes(UTF_8));
                }
                sent.add(producer.send(record));
            }
            for (var each : sent) {
                each.get();
            }
        }
    }

    /** Adds the defaults that the name depends on, and the name. */
    private static void complete(ObjectNode event) throws Exception {
        var metadata = (ObjectNode) event.get("metadata");
        var object = (ObjectNode) event.get("involvedObject");
        if (!object.has("namespace")) {
            object.set("namespace", metadata.get("namespace"));
        }
        if (!event.has("message")) {
            event.put("message", "");
        }
        metadata.put("name", name(event, metadata, object));
    }

    /** Returns the same name for every recurrence of an event. */
    private static String name(ObjectNode event, ObjectNode metadata, ObjectNode object)
            throws Exception {
        String objectName = object.get("name").textValue();
        List<String> texts =
                new ArrayList<>(
                        List.of(
                                event.get("executionId").textValue(),
                                metadata.get("namespace").textValue(),
                                object.get("namespace").textValue(),
                                objectName));
        for (var member : List.of("reason", "message", "type", "elemType", "elemId", "actionName")) {
            texts.add(event.get(member).textValue());
        }
        var hash = MessageDigest.getInstance("SHA-256").digest(String.join("\0", texts).getBytes(UTF_8));
        var bytes = objectName.getBytes(UTF_8);
        int end = Math.min(bytes.length, OBJECT_MAX_BYTES);
        while (end < bytes.length && (bytes[end] & 0xC0) == 0x80) {
            end--;
        }
        return new String(bytes, 0, end, UTF_8)
                + "."
                + HexFormat.of().formatHex(Arrays.copyOf(hash, 8));
    }
}
