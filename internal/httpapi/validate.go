package httpapi

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-playground/validator/v10"
)

// newValidator checks structs by the tags that the OpenAPI document gives them, under their JSON names.
func newValidator() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return name
	})
	return v
}

// check adds what the tags of a request's struct refuse.
func (s *Server) check(req any, wrong *problems) {
	err := s.validate.Struct(req)
	if err == nil {
		return
	}
	var fields validator.ValidationErrors // its only kind of error for a struct
	if !errors.As(err, &fields) {
		wrong.add("", "the request cannot be checked")
	}
	for _, f := range fields {
		_, path, _ := strings.Cut(f.Namespace(), ".")
		pointer := "/" + strings.NewReplacer(".", "/", "[", "/", "]", "").Replace(path)
		if wrong.at(pointer) {
			continue
		}
		wrong.add(pointer, "%s", tagProblem(f))
	}
}

func tagProblem(f validator.FieldError) string {
	what := map[reflect.Kind]string{reflect.String: " characters", reflect.Slice: " items"}[f.Kind()]
	switch f.Tag() {
	case "required":
		return "this is required, and not empty"
	case "max":
		return fmt.Sprintf("this may be %s%s at most", f.Param(), what)
	case "min":
		return fmt.Sprintf("this must be %s%s at least", f.Param(), what)
	case "oneof":
		return "this must be one of " + strings.Join(strings.Fields(f.Param()), ", ")
	default:
		return "this does not fit " + f.Tag()
	}
}
