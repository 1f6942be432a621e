// Package event reads events without a name and makes the records that report them, as
// schemas/README.md, schemas/asyncapi.json and schemas/event.schema.json specify.
package event

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

const objectMaxBytes = 236

// NamespacedName is a name in a namespace.
type NamespacedName struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// Event is the value of a record.
type Event struct {
	ExecutionID    string         `json:"executionId"`
	Metadata       NamespacedName `json:"metadata"`
	InvolvedObject NamespacedName `json:"involvedObject"`
	Reason         string         `json:"reason"`
	Message        string         `json:"message"`
	FirstTimestamp string         `json:"firstTimestamp,omitempty"`
	LastTimestamp  string         `json:"lastTimestamp,omitempty"`
	Count          int32          `json:"count,omitempty"`
	Type           string         `json:"type"`
	ElemType       string         `json:"elemType"`
	ElemID         string         `json:"elemId"`
	ActionName     string         `json:"actionName"`
}

// Header is a header of a record.
type Header struct{ Name, Value string }

// Record is a record of the topic.
type Record struct {
	Key, Value []byte
	Headers    []Header
}

// name returns the same name for every recurrence of the event.
func (e *Event) name() string {
	object := e.InvolvedObject.Name
	hash := sha256.Sum256([]byte(strings.Join([]string{
		e.ExecutionID, e.Metadata.Namespace, e.InvolvedObject.Namespace, object, e.Reason,
		e.Message, e.Type, e.ElemType, e.ElemID, e.ActionName,
	}, "\x00")))
	if len(object) > objectMaxBytes {
		end := objectMaxBytes
		for !utf8.RuneStart(object[end]) {
			end--
		}
		object = object[:end]
	}
	return object + "." + hex.EncodeToString(hash[:8])
}

// Read returns the records of the events in lines of JSON; the sequence is the number of the line.
func Read(lines io.Reader, source string) ([]Record, error) {
	var records []Record
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var event Event
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			return nil, err
		}
		if event.InvolvedObject.Namespace == "" {
			event.InvolvedObject.Namespace = event.Metadata.Namespace
		}
		event.Metadata.Name = event.name()
		value, err := json.Marshal(event)
		if err != nil {
			return nil, err
		}
		sequence := strconv.Itoa(len(records) + 1)
		records = append(records, Record{[]byte(event.ExecutionID), value, []Header{
			{"ce_specversion", "1.0"},
			{"ce_type", "execution-events.occurrence.v1"},
			{"ce_source", source},
			{"ce_id", sequence},
			{"ce_sequence", sequence},
			{"content-type", "application/json"},
		}})
	}
	return records, scanner.Err()
}
