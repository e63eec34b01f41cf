package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const envPrefix = "PARRY_"

// clientEnv are the variables of the command line, which share the prefix.
var clientEnv = []string{"PARRY_CONFIG", "PARRY_SERVER", "PARRY_TOKEN", "PARRY_TOKEN_FILE", "PARRY_CA", "PARRY_CLIENT_CONFIG"}

// EnvNames gives the environment variable of every setting, sorted: PARRY_ and the key in capitals, "." as "_".
func EnvNames() []string { return slices.Sorted(maps.Keys(envKeys())) }

// UnknownEnv lists variables that look like settings and are none, so that a typo can be told. They are no fault: an orchestrator may
// set PARRY_PORT and the like by itself.
func UnknownEnv(environ []string) []string {
	known := envKeys()
	var out []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if _, ok := known[name]; !ok && strings.HasPrefix(name, envPrefix) && !slices.Contains(clientEnv, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

type envKey struct {
	key   string
	index []int
}

func envKeys() map[string]envKey {
	out := map[string]envKey{}
	var walk func(t reflect.Type, key string, index []int)
	walk = func(t reflect.Type, key string, index []int) {
		for name, f := range fields(t) {
			k, at := join(key, name), append(slices.Clone(index), f.Index...)
			if isStruct(f.Type) {
				walk(f.Type, k, at)
				continue
			}
			out[envPrefix+strings.ToUpper(strings.ReplaceAll(k, ".", "_"))] = envKey{k, at}
		}
	}
	walk(reflect.TypeFor[Config](), "", nil)
	return out
}

// environment overrides settings. Text is taken as it is, lists of words by commas, and all else as YAML.
func (l *loader) environment(c *Config, environ []string) {
	keys := envKeys()
	for _, e := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(e, "=")
		k, ok := keys[name]
		if !ok {
			continue
		}
		v := reflect.ValueOf(c).Elem().FieldByIndex(k.index)
		switch {
		case v.Kind() == reflect.String:
			v.SetString(value)
		case v.Type() == reflect.TypeFor[[]string]() && !strings.HasPrefix(value, "["):
			words := strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
			v.Set(reflect.ValueOf(words))
		default:
			var n yaml.Node
			err := yaml.Unmarshal([]byte(value), &n)
			if err == nil && n.Kind == yaml.DocumentNode {
				sub := &loader{err: &Error{}, lines: map[string]int{}}
				if sub.walk(n.Content[0], v.Type(), k.key); len(sub.err.Problems) > 0 {
					l.problem(0, name, "%s: %s", sub.err.Problems[0].Key, sub.err.Problems[0].Text)
					continue
				}
				err = n.Decode(v.Addr().Interface())
			}
			if err != nil {
				sub := &loader{err: &Error{}}
				sub.yamlError("", err)
				l.problem(0, name, "%s", sub.err.Problems[0].Text)
			}
		}
	}
}
