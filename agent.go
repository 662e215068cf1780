package shoal

import "time"

// Skill is something an agent offers. Its ID is the capability under which it is found.
type Skill struct {
	ID          string // [a-z0-9._-], at most 64, see [ParseCapability]
	Name        string
	Description string
	Tags        []string
	Examples    []string
	// Idempotent says that the work may be run again when a worker was lost in the
	// middle; otherwise such a task is FAILED with reason worker_lost.
	Idempotent bool
}

// AgentSpec is what an agent's owner says about it; a card is made from it.
type AgentSpec struct {
	ID          AgentID
	Name        string // unique on its node, for people; at most 64 bytes
	Description string
	Skills      []Skill
}

// Record is a value that only the owner of its key can write: the content of
// /shoal/<Kind>/<Owner> in the DHT (spec/records.md §6).
type Record struct {
	Kind      string // such as "card"
	Owner     AgentID
	Seq       uint64 // a higher one replaces a lower one
	NotBefore time.Time
	NotAfter  time.Time
	Value     []byte // at most 8 KiB
}

// CapabilityPrefix is what a capability's name gets in front when it is hashed into a
// provider record's key.
const CapabilityPrefix = "a2a:v1:cap:"

// ParseCapability returns the plain name of a capability, given with or without
// [CapabilityPrefix]. A name is 1 to 64 of a-z, 0-9, '.', '_', '-' and starts with a
// letter or digit. It returns an [Invalid] error with reason bad_capability otherwise.
func ParseCapability(s string) (string, error) {
	name := s
	if len(name) > len(CapabilityPrefix) && name[:len(CapabilityPrefix)] == CapabilityPrefix {
		name = name[len(CapabilityPrefix):]
	}
	ok := len(name) >= 1 && len(name) <= 64
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		if len(s) > 80 {
			s = s[:80] + "…"
		}
		return "", NewError(Invalid, "bad_capability", "capability \""+s+"\" is malformed",
			"use 1 to 64 of a-z, 0-9, '.', '_', '-'")
	}
	return name, nil
}
