package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/parry/parry/internal/parry"
)

// Contract is the version of the playbook contract that this parry speaks.
const Contract = 1

// Manifest is a bundle's bundle.yml: what it is and what its kind of firewall can express.
type Manifest struct {
	Name        string             `yaml:"name"`        // ^[a-z][a-z0-9_-]*$
	Version     string             `yaml:"version"`     // semantic version
	Contract    int                `yaml:"contract"`    // must be [Contract]
	Description string             `yaml:"description"` // one line, for people
	Families    []string           `yaml:"families"`    // of inet, inet6
	Prefixes    bool               `yaml:"prefixes"`    // sources and destinations may be prefixes
	Protocols   []parry.Protocol   `yaml:"protocols"`   // in the file "any" stands for parry.ProtoAny
	Ports       bool               `yaml:"ports"`       // destination ports
	Interfaces  bool               `yaml:"interfaces"`  // an interface can be chosen
	Timeouts    bool               `yaml:"timeouts"`    // the firewall itself keeps an entry's expiry
	Loaded      bool               `yaml:"loaded"`      // verify writes what is loaded, entry by entry
	Counters    bool               `yaml:"counters"`    // with what each entry has dropped
	Exemptions  bool               `yaml:"exemptions"`  // apply puts the exemptions ahead of the drops
	AfterNAT    bool               `yaml:"after_nat"`   // its rules see a destination after port forwarding
	Facts       bool               `yaml:"facts"`       // verify answers the firewall's own addresses and port forwards
	Settings    map[string]Setting `yaml:"settings"`    // the firewall's own variables, by name
}

// Setting is one variable that a firewall's configuration may give to the bundle.
type Setting struct {
	Type        string `yaml:"type"`    // string (the default), bool or int
	Choices     []any  `yaml:"choices"` // empty: any value of the type
	Min         *int   `yaml:"min"`     // of an int
	Max         *int   `yaml:"max"`
	Default     any    `yaml:"default"`     // what the bundle takes when the setting is not given: for people, never sent
	Required    bool   `yaml:"required"`    // a firewall must give it
	Description string `yaml:"description"` // one line, for people
}

var (
	nameRE    = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)
	settingRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	semverRE  = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)
)

// ParseManifest reads a bundle.yml strictly: an unknown or repeated key, a second document or a wrong type is refused with its line.
func ParseManifest(b []byte) (*Manifest, error) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	var m Manifest
	if err := d.Decode(&m); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("bundle.yml is empty: it must name at least name, version and contract")
		}
		return nil, fmt.Errorf("bundle.yml: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("bundle.yml: it must hold one YAML document only")
	}
	for i, p := range m.Protocols {
		if p == "any" {
			m.Protocols[i] = parry.ProtoAny
		}
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("bundle.yml: %w", err)
	}
	return &m, nil
}

func (m *Manifest) validate() error {
	switch {
	case !nameRE.MatchString(m.Name):
		return fmt.Errorf("name: %q is no bundle name; write lower case letters, digits, - and _", m.Name)
	case !semverRE.MatchString(m.Version):
		return fmt.Errorf("version: %q is no semantic version such as 1.2.0", m.Version)
	case m.Contract != Contract:
		return fmt.Errorf("contract: %d is not supported; this parry speaks contract %d", m.Contract, Contract)
	case len(m.Families) == 0:
		return errors.New("families: name inet, inet6 or both")
	case len(m.Protocols) == 0:
		return errors.New("protocols: name at least any")
	}
	for _, f := range m.Families {
		if f != "inet" && f != "inet6" {
			return fmt.Errorf("families: %q is not inet or inet6", f)
		}
	}
	for _, p := range m.Protocols {
		if p != parry.ProtoAny && !slices.Contains(parry.Protocols, p) {
			return fmt.Errorf("protocols: %q is not known; there are any and %v", p, parry.Protocols)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Settings)) {
		s := m.Settings[name]
		if s.Type == "" {
			s.Type = "string"
		}
		m.Settings[name] = s
		if err := s.validate(name); err != nil {
			return fmt.Errorf("settings.%s: %w", name, err)
		}
	}
	return nil
}

func (s *Setting) validate(name string) error {
	switch {
	case !settingRE.MatchString(name):
		return errors.New("a setting is a variable: lower case letters, digits and _")
	case strings.HasPrefix(name, "ansible_"), strings.HasPrefix(name, "parry_"):
		return errors.New("names that begin with ansible_ or parry_ are taken")
	case s.Type != "string" && s.Type != "bool" && s.Type != "int":
		return fmt.Errorf("type %q is not string, bool or int", s.Type)
	case s.Type != "int" && (s.Min != nil || s.Max != nil):
		return errors.New("min and max are for an int")
	}
	for _, c := range s.Choices {
		if !s.typed(c) {
			return fmt.Errorf("choice %v is no %s", c, s.Type)
		}
	}
	if s.Default != nil {
		if err := s.check(s.Default); err != nil {
			return fmt.Errorf("default: %w", err)
		}
	}
	return nil
}

func (s *Setting) typed(v any) bool {
	switch v.(type) {
	case string:
		return s.Type == "string"
	case bool:
		return s.Type == "bool"
	case int:
		return s.Type == "int"
	}
	return false
}

func (s *Setting) check(v any) error {
	switch n, _ := v.(int); {
	case !s.typed(v):
		return fmt.Errorf("%v is no %s", v, s.Type)
	case len(s.Choices) > 0 && !slices.Contains(s.Choices, v):
		return fmt.Errorf("%v is not one of %v", v, s.Choices)
	case s.Min != nil && n < *s.Min:
		return fmt.Errorf("%d is less than %d", n, *s.Min)
	case s.Max != nil && n > *s.Max:
		return fmt.Errorf("%d is more than %d", n, *s.Max)
	}
	return nil
}

// CheckSettings holds a firewall's settings against what the bundle takes; the error names the setting and the mend.
func (m *Manifest) CheckSettings(settings map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		s, ok := m.Settings[name]
		if !ok {
			return fmt.Errorf("setting %s is not known to bundle %s; it takes %s", name, m.Name, m.settingNames())
		}
		if err := s.check(settings[name]); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Settings)) {
		if _, ok := settings[name]; m.Settings[name].Required && !ok {
			return fmt.Errorf("setting %s is missing: bundle %s needs it", name, m.Name)
		}
	}
	return nil
}

func (m *Manifest) settingNames() string {
	if len(m.Settings) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(m.Settings)), ", ")
}

// Expresses says why the bundle's kind of firewall cannot hold the match, nil when it can.
func (m *Manifest) Expresses(x parry.Match) error {
	family := "inet"
	if x.Source.Addr().Is6() {
		family = "inet6"
	}
	switch {
	case !slices.Contains(m.Families, family):
		return fmt.Errorf("bundle %s has no %s", m.Name, map[string]string{"inet": "IPv4", "inet6": "IPv6"}[family])
	case !m.Prefixes && !x.Source.IsSingleIP(), !m.Prefixes && x.Destination.IsValid() && !x.Destination.IsSingleIP():
		return fmt.Errorf("bundle %s takes single addresses only, no prefixes", m.Name)
	case !slices.Contains(m.Protocols, x.Protocol):
		if x.Protocol == parry.ProtoAny {
			return fmt.Errorf("bundle %s needs a protocol", m.Name)
		}
		return fmt.Errorf("bundle %s cannot match protocol %s", m.Name, x.Protocol)
	case x.Port != 0 && !m.Ports:
		return fmt.Errorf("bundle %s cannot match ports", m.Name)
	case x.Interface != "" && !m.Interfaces:
		return fmt.Errorf("bundle %s cannot choose an interface", m.Name)
	}
	return nil
}
