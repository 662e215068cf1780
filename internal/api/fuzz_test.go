package api

import (
	"bytes"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// FuzzRequest sends anything to any unary method. Nothing may panic or be our fault,
// every refusal says why, and what reaches a service has been checked.
func FuzzRequest(f *testing.F) {
	methods := slices.Sorted(maps.Keys(good))
	for i, m := range methods {
		f.Add(uint8(i), false, []byte(good[m]))
		f.Add(uint8(i), true, binaryOf(f, m))
	}
	for _, c := range bad {
		if len(c.new) < 500 {
			f.Add(uint8(slices.Index(methods, c.method)), false, []byte(strings.Replace(good[c.method], c.old, c.new, 1)))
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, binary bool, body []byte) {
		services := services(new(fake))
		seen := services.Node.(*fake)
		h := New(Config{}, services, discard()).Handler(true)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/shoal.v1."+methods[int(method)%len(methods)], bytes.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		if binary {
			req.Header.Set("Content-Type", "application/proto")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code == 500 {
			t.Fatalf("%s", w.Body)
		}
		if w.Code != 200 && errorInfo(t, w.Body.String()).GetReason() == "" {
			t.Errorf("%d without a reason: %s", w.Code, w.Body)
		}
		for _, r := range seen.requests {
			wantSane(t, r.Message)
			if r.Timeout < 0 || r.TTL < 0 || len(r.IdempotencyKey) > maxIDLen || r.To == "" && r.Skill == "" {
				t.Errorf("let through: %+v", r)
			}
		}
		for _, r := range seen.reports {
			if r.Message != nil {
				wantSane(t, r.Message)
			}
			for _, a := range r.Artifacts {
				wantSane(t, &a2a.Message{ID: string(a.ID), Parts: a.Parts})
			}
			if (r.Chunk == nil) == (r.State == "" && len(r.Artifacts) == 0) {
				t.Errorf("let through: %+v", r)
			}
		}
	})
}

func wantSane(t *testing.T, m *a2a.Message) {
	t.Helper()
	if m.ID == "" || len(m.ID) > maxIDLen || len(m.Parts) == 0 || len(m.Parts) > maxParts {
		t.Errorf("let through: %+v", m)
	}
	for _, p := range m.Parts {
		if p.Content == nil || depth(p.Data()) > maxDepth || depth(p.Metadata) > maxDepth {
			t.Errorf("let through: %+v", p)
		}
	}
	if _, err := encodeMessage(m); err != nil {
		t.Errorf("cannot be sent on: %v", err)
	}
}

func depth(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	case []any:
		for _, e := range v {
			deepest = max(deepest, depth(e))
		}
	default:
		return 0
	}
	return deepest + 1
}

// binaryOf returns a good request in protobuf.
func binaryOf(f *testing.F, method string) []byte {
	name := protoreflect.FullName("shoal.v1." + strings.ReplaceAll(method, "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		f.Fatal(err)
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.(protoreflect.MethodDescriptor).Input().FullName())
	if err != nil {
		f.Fatal(err)
	}
	m := mt.New().Interface()
	if err := protojson.Unmarshal([]byte(good[method]), m); err != nil {
		f.Fatal(err)
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return raw
}
