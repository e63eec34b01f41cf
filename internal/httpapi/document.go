package httpapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/gin-gonic/gin"
	"go.yaml.in/yaml/v3"

	"github.com/parry/parry/api"
	"github.com/parry/parry/internal/parry"
)

const (
	rightNone = "none" // public
	rightAny  = "any"  // any valid token
)

// operation is what the document says of a route beyond what the router was generated from.
type operation struct {
	right string   // rightNone, rightAny, or a parry.Right
	query []string // the query parameters that it knows
}

// document is api/openapi.yaml, read at start.
type document struct {
	json       []byte
	operations map[string]operation // by method and gin path: "GET /api/v1/blocks/:id"
}

type docParameter struct {
	Ref  string `yaml:"$ref"`
	Name string `yaml:"name"`
	In   string `yaml:"in"`
}

type docOperation struct {
	Right      string         `yaml:"x-parry-right"`
	Parameters []docParameter `yaml:"parameters"`
}

// readDocument reads it once in a process.
var readDocument = sync.OnceValues(func() (*document, error) {
	var root yaml.Node
	var tree map[string]any
	var typed struct {
		Paths      map[string]map[string]yaml.Node `yaml:"paths"`
		Components struct {
			Parameters map[string]docParameter `yaml:"parameters"`
		} `yaml:"components"`
	}
	if err := yaml.Unmarshal([]byte(api.OpenAPI()), &root); err != nil {
		return nil, err
	}
	if err := root.Decode(&tree); err != nil {
		return nil, err
	}
	if err := root.Decode(&typed); err != nil {
		return nil, err
	}
	d := &document{operations: map[string]operation{}}
	var err error
	if d.json, err = json.Marshal(tree); err != nil {
		return nil, err
	}
	for path, item := range typed.Paths {
		for method, node := range item {
			if method == "parameters" {
				continue // those of the path itself
			}
			var op docOperation
			if err := node.Decode(&op); err != nil {
				return nil, fmt.Errorf("%s %s: %w", method, path, err)
			}
			o := operation{right: op.Right}
			if o.right != rightNone && o.right != rightAny && !slices.Contains(parry.RoleAdmin.Rights(), parry.Right(o.right)) {
				return nil, fmt.Errorf("%s %s: x-parry-right is %q, which is no right", method, path, o.right)
			}
			for _, p := range op.Parameters {
				if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
					p = typed.Components.Parameters[name]
				}
				if p.In == "query" {
					o.query = append(o.query, p.Name)
				}
			}
			d.operations[strings.ToUpper(method)+" "+strings.NewReplacer("{", ":", "}", "").Replace(path)] = o
		}
	}
	return d, nil
})

// covers tells whether the routes are exactly the document's operations.
func (d *document) covers(routes gin.RoutesInfo) error {
	left := make(map[string]bool, len(d.operations))
	for k := range d.operations {
		left[k] = true
	}
	for _, r := range routes {
		k := r.Method + " " + r.Path
		if !left[k] {
			return fmt.Errorf("the OpenAPI document does not have %s: run go generate ./api", k)
		}
		delete(left, k)
	}
	for k := range left {
		return fmt.Errorf("the OpenAPI document's %s is not served: run go generate ./api", k)
	}
	return nil
}

func (s *Server) GetOpenAPI(c *gin.Context) { c.Data(http.StatusOK, jsonType, s.doc.json) }
