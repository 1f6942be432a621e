// Command franz-go publishes the events on its input: franz-go BOOTSTRAP TOPIC SOURCE.
package main

import (
	"context"
	"log"
	"os"

	"example.org/foreign/event"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	records, err := event.Read(os.Stdin, os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	// By default idempotent, with acknowledgements from all in-sync replicas and Java's partitions.
	client, err := kgo.NewClient(kgo.SeedBrokers(os.Args[1]), kgo.DefaultProduceTopic(os.Args[2]))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var produced []*kgo.Record
	for _, record := range records {
		each := &kgo.Record{Key: record.Key, Value: record.Value}
		for _, header := range record.Headers {
			each.Headers = append(each.Headers,
				kgo.RecordHeader{Key: header.Name, Value: []byte(header.Value)})
		}
		produced = append(produced, each)
	}
	if err := client.ProduceSync(context.Background(), produced...).FirstErr(); err != nil {
		log.Fatal(err)
	}
}
