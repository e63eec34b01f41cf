// Package httpapi serves parry's HTTP interface, api/openapi.yaml, with gin.
//
// The document is the source of the routes, the parameters, and of the right that each operation needs: the router is generated from it
// (server.gen.go), and at start it is read for the rest, so that a route cannot exist without a right. The generated strict server is not
// used, because it binds bodies with encoding/json, which takes repeated, differently cased and unknown fields, trailing bytes and invalid
// UTF-8; bodies are decoded by hand instead (decode.go), which also takes half the time, and then validated by the document's tags.
//
// Every request passes: observe (request id, log, metrics, panics), authorize (who, and may that), then its handler. Handlers give errors to
// fail, the one place that turns an error's kind into a status and a problem document. The text of an error without a kind goes to the log
// only.
package httpapi
