// Command kafka-go publishes the events on its input: kafka-go BOOTSTRAP TOPIC SOURCE [wrong].
package main

import (
	"context"
	"log"
	"os"

	"example.org/foreign/event"
	"github.com/segmentio/kafka-go"
)

const batchSize = 100

func main() {
	records, err := event.Read(os.Stdin, os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	writer := &kafka.Writer{
		Addr:         kafka.TCP(os.Args[1]),
		Topic:        os.Args[2],
		Balancer:     &kafka.Murmur2Balancer{},
		RequiredAcks: kafka.RequireAll,
		BatchSize:    batchSize,
	}
	if len(os.Args) > 4 {
		writer.Balancer = &kafka.Hash{}
	}
	// At most one batch of a partition in a call, and none after an error: the writer is not
	// idempotent, so a partition has one request in flight, and no record is skipped.
	for len(records) > 0 {
		part := records[:min(batchSize, len(records))]
		records = records[len(part):]
		messages := make([]kafka.Message, len(part))
		for i, record := range part {
			messages[i] = kafka.Message{Key: record.Key, Value: record.Value}
			for _, header := range record.Headers {
				messages[i].Headers = append(messages[i].Headers,
					kafka.Header{Key: header.Name, Value: []byte(header.Value)})
			}
		}
		if err := writer.WriteMessages(context.Background(), messages...); err != nil {
			log.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		log.Fatal(err)
	}
}
