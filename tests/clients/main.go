// The API by the client that openapi-generator writes in Go; prints what it read as JSON.
//
//	clients URL TOKEN EXECUTION_ID SINCE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"example.org/client"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func names(events []client.Event) []string {
	found := []string{}
	for _, event := range events {
		found = append(found, event.Metadata.Name)
	}
	return found
}

func execution(each client.Execution) []any {
	var reason any
	if failure := each.FirstFailure.Get(); failure != nil {
		reason = failure.Reason
	}
	return []any{each.ExecutionId, each.State, each.Events, reason}
}

func failure(ctx context.Context, api *client.EventsAPIService, executionID string) []any {
	_, response, err := api.ListEvents(ctx, executionID).Marker("wrong").Execute()
	var generic *client.GenericOpenAPIError
	if !errors.As(err, &generic) {
		check(fmt.Errorf("expected an error of the API, got %v", err))
	}
	return []any{response.StatusCode, generic.Model().(client.Error).ErrorCode}
}

func main() {
	url, token, executionID := os.Args[1], os.Args[2], os.Args[3]
	configuration := client.NewConfiguration()
	configuration.Servers = client.ServerConfigurations{{URL: url}}
	apis := client.NewAPIClient(configuration)
	api := apis.EventsAPI
	ctx := context.WithValue(context.Background(), client.ContextAPIKeys,
		map[string]client.APIKey{"token": {Key: token}})
	found := map[string]any{}

	list, _, err := api.ListEvents(ctx, executionID).Execute()
	check(err)
	found["list"] = names(list)

	since, err := time.Parse(time.RFC3339, os.Args[4])
	check(err)
	list, _, err = api.ListEvents(ctx, executionID).Since(since).Execute()
	check(err)
	found["since"] = names(list)

	executions := [][]any{}
	for marker := ""; ; {
		request := apis.ExecutionsAPI.ListExecutions(ctx).Limit(1).Order("asc").Lang("en")
		if marker != "" {
			request = request.Marker(marker)
		}
		page, response, err := request.Execute()
		check(err)
		for _, each := range page {
			executions = append(executions, execution(each))
		}
		if marker = response.Header.Get("X-Next-Marker"); marker == "" {
			break
		}
	}
	found["executions"] = executions

	failed := [][]any{}
	states := []client.State{client.FAILED, client.TIMED_OUT}
	page, _, err := apis.ExecutionsAPI.ListExecutions(ctx).State(states).Lang("en").Execute()
	check(err)
	for _, each := range page {
		failed = append(failed, execution(each))
	}
	found["failed"] = failed

	pages := [][]string{}
	for marker := ""; ; {
		request := api.ListEvents(ctx, executionID).Limit(2)
		if marker != "" {
			request = request.Marker(marker)
		}
		page, response, err := request.Execute()
		check(err)
		pages = append(pages, names(page))
		if marker = response.Header.Get("X-Next-Marker"); marker == "" {
			break
		}
	}
	found["pages"] = pages
	found["wrong"] = failure(ctx, api, executionID)
	found["unauthorized"] = failure(context.Background(), api, executionID)
	check(json.NewEncoder(os.Stdout).Encode(found))
}
