package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Problem is one fault of a configuration.
type Problem struct {
	Line int    // 0 when the fault has none: a missing key, an environment variable
	Key  string // dotted, as in the file: "firewalls[0].name"
	Text string // what is wrong and what to write instead
}

// Error is every fault that was found.
type Error struct {
	Path     string
	Problems []Problem
}

func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Path)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		if p.Key != "" {
			b.WriteString(": " + p.Key)
		}
		b.WriteString(": " + p.Text)
	}
	return b.String()
}

// Load reads the file at path, then the environment ("NAME=value", as os.Environ gives it), then the secret files, and validates the
// whole. An empty path is a configuration from the environment alone. Faults come as an [*Error].
func Load(path string, environ []string) (*Config, error) {
	c, l := Default(), &loader{err: &Error{Path: "environment"}, lines: map[string]int{}}
	dir, err := os.Getwd()
	if path != "" {
		path, err = filepath.Abs(path)
		dir = filepath.Dir(path)
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", path, err)
	}
	if path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		l.err.Path, c.Digest = path, fmt.Sprintf("%x", sha256.Sum256(data))
		l.file(c, data)
	}
	l.environment(c, environ)
	if len(l.err.Problems) == 0 {
		resolvePaths(reflect.ValueOf(c).Elem(), dir)
		if b := &c.Ansible.PlaybookBin; strings.Contains(*b, "/") && !filepath.IsAbs(*b) {
			*b = filepath.Join(dir, *b)
		}
		l.secret("database.dsn", &c.Database.DSN, c.Database.DSNFile)
		l.secret("mail.password", &c.Mail.Password, c.Mail.PasswordFile)
		for i := range c.Channels {
			ch, key := &c.Channels[i], fmt.Sprintf("channels[%d]", i)
			l.secret(key+".token", &ch.Token, ch.TokenFile)
			l.secret(key+".secret", &ch.Secret, ch.SecretFile)
		}
		c.complete()
		for _, p := range c.Validate() {
			l.problem(l.lineOf(p.Key), p.Key, "%s", p.Text)
		}
	}
	if len(l.err.Problems) > 0 {
		slices.SortStableFunc(l.err.Problems, func(a, b Problem) int { return a.Line - b.Line })
		return nil, l.err
	}
	return c, nil
}

// Socket is what the file sets for socket, however wrong the rest of it is: the command line must reach the service then, too. Empty when
// it sets none or cannot be read.
func Socket(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var c struct {
		Socket string `yaml:"socket"`
	}
	if yaml.Unmarshal(data, &c) != nil || c.Socket == "" || filepath.IsAbs(c.Socket) {
		return c.Socket
	}
	if path, err = filepath.Abs(path); err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(path), c.Socket)
}

// complete fills in what follows from other settings.
func (c *Config) complete() {
	if c.Database.Path == "" {
		c.Database.Path = filepath.Join(c.StateDir, "parry.db")
	}
	for i := range c.Channels {
		c.Channels[i].complete()
	}
	for i := range c.Firewalls {
		f := &c.Firewalls[i]
		if f.Bundle == "" {
			f.Bundle = defaultBundle
		}
		if f.Interface == "" {
			f.Interface = defaultInterface
		}
		if f.MaxRules == 0 {
			f.MaxRules = defaultMaxRules
		}
	}
}

type loader struct {
	err   *Error
	lines map[string]int // of each key in the file
}

func (l *loader) problem(line int, key, format string, args ...any) {
	l.err.Problems = append(l.err.Problems, Problem{line, key, fmt.Sprintf(format, args...)})
}

// lineOf is the line of a key, or of the nearest part of it that stands in the file.
func (l *loader) lineOf(key string) int {
	for {
		if n, ok := l.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

func (l *loader) yamlProblem(key, text string) {
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[1])
		l.problem(line, key, "%s", m[2])
		return
	}
	l.problem(0, key, "%s", strings.TrimPrefix(text, "yaml: "))
}

func (l *loader) yamlError(key string, err error) {
	var te *yaml.TypeError
	if errors.As(err, &te) {
		for _, t := range te.Errors {
			l.yamlProblem(key, t)
		}
		return
	}
	l.yamlProblem(key, err.Error())
}

func (l *loader) file(c *Config, data []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return // an empty file: all defaults
	} else if err != nil {
		l.yamlError("", err)
		return
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		l.problem(0, "", "there is a second document; keep one, without a further ---")
	}
	l.walk(doc.Content[0], reflect.TypeFor[Config](), "")
	if len(l.err.Problems) > 0 {
		return
	}
	if err := doc.Decode(c); err != nil {
		l.yamlError("", err)
	}
}

// walk finds keys that the type does not have and notes the line of those that it has.
func (l *loader) walk(n *yaml.Node, t reflect.Type, key string) {
	switch {
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for i, e := range n.Content {
			k := fmt.Sprintf("%s[%d]", key, i)
			l.lines[k] = e.Line
			l.walk(e, t.Elem(), k)
		}
	case isStruct(t) && n.Kind == yaml.MappingNode:
		known := fields(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			name, value := n.Content[i], n.Content[i+1]
			k := join(key, name.Value)
			l.lines[k] = name.Line
			f, ok := known[name.Value]
			if !ok {
				l.problem(name.Line, k, "%s", unknown(known, name.Value))
				continue
			}
			l.walk(value, f.Type, k)
		}
	case isStruct(t) && n.Tag != "!!null":
		l.problem(n.Line, key, "write settings below it, as in \"name: value\"")
	}
}

func unknown(known map[string]reflect.StructField, name string) string {
	best, dist := "", 4
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
		if d := distance(k, name); d < dist || d == dist && k < best {
			best, dist = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("there is no such setting; did you mean %s?", best)
	}
	slices.Sort(names)
	return "there is no such setting; there are " + strings.Join(names, ", ")
}

// distance is the number of edits (Levenshtein) between two short names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diag
			if a[i] != b[j] {
				d++
			}
			diag = row[j+1]
			row[j+1] = min(d, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// isStruct tells whether a type is one of the configuration's groups, rather than a value that reads itself.
func isStruct(t reflect.Type) bool { return t.Kind() == reflect.Struct && len(fields(t)) > 0 }

func fields(t reflect.Type) map[string]reflect.StructField {
	out := map[string]reflect.StructField{}
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" {
			out[name] = t.Field(i)
		}
	}
	return out
}

func resolvePaths(v reflect.Value, dir string) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case v.Type().Field(i).Tag.Get("path") != "":
			if s := f.String(); s != "" && !filepath.IsAbs(s) {
				f.SetString(filepath.Join(dir, s))
			}
		case isStruct(f.Type()):
			resolvePaths(f, dir)
		case f.Kind() == reflect.Slice && isStruct(f.Type().Elem()):
			for j := range f.Len() {
				resolvePaths(f.Index(j), dir)
			}
		}
	}
}

const maxSecret = 64 << 10

// secret reads the file of a secret. Its mode must keep others out, because a secret that anyone can read is a fault like any other.
func (l *loader) secret(key string, s *Secret, path string) {
	if path == "" {
		return
	}
	if *s != "" {
		l.problem(l.lineOf(key), key, "set this or %s_file, not both", key)
		return
	}
	line, key := l.lineOf(key+"_file"), key+"_file"
	f, err := os.Open(path)
	if err != nil {
		mend := "name a file that parry can read"
		if errors.Is(err, fs.ErrNotExist) {
			mend = "make it, mode 0600, holding the secret alone"
		}
		l.problem(line, key, "%v; %s", err, mend)
		return
	}
	defer f.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	text := strings.TrimRight(string(data), "\r\n")
	st, serr := f.Stat()
	switch {
	case err != nil:
		l.problem(line, key, "%v; name a file", err)
	case serr == nil && st.Mode().Perm()&0o007 != 0 && !orchestrated(path):
		l.problem(line, key, "%s can be read by everybody; chmod 600 it", path)
	case len(data) > maxSecret || text == "" || strings.ContainsAny(text, "\x00\n\r"):
		l.problem(line, key, "%s must hold the secret on one line, and nothing else", path)
	default:
		*s = Secret(text)
	}
}

// orchestrated tells whether a secret was mounted by a container engine, which gives it a mode of its own; only the container sees it.
func orchestrated(path string) bool {
	return strings.HasPrefix(path, "/run/secrets/") || strings.HasPrefix(path, "/var/run/secrets/")
}

// Keys lists every setting, dotted and sorted, with "[]" for the records of a list.
func Keys() []string {
	var out []string
	var walk func(t reflect.Type, key string)
	walk = func(t reflect.Type, key string) {
		for name, f := range fields(t) {
			k := join(key, name)
			switch {
			case isStruct(f.Type):
				walk(f.Type, k)
			case f.Type.Kind() == reflect.Slice && isStruct(f.Type.Elem()):
				walk(f.Type.Elem(), k+"[]")
			default:
				out = append(out, k)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	slices.Sort(out)
	return out
}
