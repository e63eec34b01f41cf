// Package api is parry's HTTP interface as others see it: the OpenAPI document, and the Go types and client that are generated from it.
//
// The document is the source: the server's routes, parameters and rights are read from it too. After a change to it:
//
//	go generate ./api
package api

import _ "embed"

//go:generate go run -modfile=../tools/go.mod github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen -config client.yaml openapi.yaml
//go:generate go run -modfile=../tools/go.mod github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen -config server.yaml openapi.yaml

//go:embed openapi.yaml
var openAPI string

// OpenAPI is the document, in YAML.
func OpenAPI() string { return openAPI }
