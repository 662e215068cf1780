package node

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"
)

// docs/ops/config.md has a line for each key and no other, and its example is accepted
// and names every key.
func TestConfigIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/ops/config.md")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for f := range reflect.TypeFor[Config]().Fields() {
		keys = append(keys, f.Tag.Get("toml"))
	}
	names := func(re string) (found []string) {
		for _, m := range regexp.MustCompile(re).FindAllSubmatch(raw, -1) {
			found = append(found, string(m[1]))
		}
		return found
	}
	if got := names("(?m)^\\| `([a-z_]+)` \\|"); !slices.Equal(got, keys) {
		t.Errorf("the table has %q, want %q", got, keys)
	}
	if got := names("(?m)^([a-z_]+) = "); !slices.Equal(got, keys) {
		t.Errorf("the example has %q, want %q", got, keys)
	}
	example := regexp.MustCompile("(?s)```toml\n(.*?)```").FindSubmatch(raw)
	if example == nil {
		t.Fatal("no example")
	}
	var c Config
	if err := parseConfig(example[1], &c); err != nil {
		t.Errorf("the example: %v", err)
	}
	if c.TaskTimeout == 0 || len(c.Join) != 1 || c.OTLPEndpoint == "" {
		t.Errorf("the example was read as %+v", c)
	}
}
