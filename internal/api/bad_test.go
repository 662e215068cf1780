package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// nested returns JSON of n objects in each other.
func nested(n int) string { return strings.Repeat(`{"a":`, n-1) + `{}` + strings.Repeat(`}`, n-1) }

// good are requests that are accepted; each bad one differs from one of them in one place.
var good = map[string]string{
	"TaskService/Send":        `{"to":"alice","skill":"ocr","message":{"parts":[{"text":"x"}]},"requestId":"r1","contextId":"c1","timeoutMs":"1000","ttlMs":"1000","class":"TASK_CLASS_LIVE","wait":true,"waitMs":"1000"}`,
	"TaskService/Get":         `{"id":"t1","requester":"` + string(bob) + `","role":"TASK_ROLE_DOING"}`,
	"TaskService/List":        `{"state":"TASK_STATE_WORKING","role":"TASK_ROLE_ASKED","contextId":"c","pageSize":10,"pageToken":"x"}`,
	"TaskService/Cancel":      `{"id":"t1"}`,
	"TaskService/Reply":       `{"id":"t1","requestId":"r","message":{"parts":[{"text":"x"}]}}`,
	"TaskService/Receipt":     `{"id":"t1"}`,
	"AgentService/List":       `{}`,
	"AgentService/Resolve":    `{"agent":"alice","fresh":true}`,
	"AgentService/Find":       `{"capability":"ocr","limit":5}`,
	"AgentService/Remove":     `{"agent":"alice"}`,
	"AgentService/Refresh":    `{"agent":"alice"}`,
	"WorkerService/Report":    `{"session":"sess","taskId":"t1","requester":"` + string(bob) + `","status":{"state":"TASK_STATE_COMPLETED","message":{"parts":[{"text":"x"}]}},"artifacts":[{"artifactId":"a","name":"n","parts":[{"text":"x"}]}]}`,
	"WorkerService/Heartbeat": `{"session":"sess"}`,
	"MailService/Inbox":       `{"agent":"alice","after":"7","pageSize":10}`,
	"MailService/Ack":         `{"agent":"alice","cursors":["1","2"]}`,
	"NodeService/Status":      `{}`,
	"NodeService/Peers":       `{}`,
	"NodeService/Ping":        `{"agent":"` + string(bob) + `"}`,
	"NodeService/Invite":      `{}`,
	"NodeService/Join":        `{"target":"shoal:x"}`,
	"NodeService/Shutdown":    `{}`,
	"NodeService/Backup":      `{"path":"/tmp/x"}`,
	"NodeService/DeadLetters": `{"pageSize":10,"pageToken":"x"}`,
}

// bad are replacements in a good request, with the reason that they are refused for.
var bad = []struct{ method, old, new, want string }{
	// Wrong type, wrong encoding, what is no JSON.
	{"TaskService/Send", `"to":"alice"`, `"to":5`, "bad_request"},
	{"TaskService/Send", `"to":"alice"`, `"to":["alice"]`, "bad_request"},
	{"TaskService/Send", `"to":"alice"`, `"to":"alice","to":"bob"`, "bad_request"},
	{"TaskService/Send", `"to":"alice"`, `"too":"alice"`, "bad_request"},
	{"TaskService/Send", `"to":"alice"`, "\"to\":\"al\xffice\"", "bad_request"},
	{"TaskService/Send", `"to":"alice"`, `"to":"\ud800"`, "bad_request"},
	{"TaskService/Send", `"timeoutMs":"1000"`, `"timeoutMs":"1e99"`, "bad_request"},
	{"TaskService/Send", `"timeoutMs":"1000"`, `"timeoutMs":1.5`, "bad_request"},
	{"TaskService/Send", `"timeoutMs":"1000"`, `"timeoutMs":"9223372036854775808"`, "bad_request"},
	{"TaskService/Send", `"wait":true`, `"wait":"yes"`, "bad_request"},
	{"TaskService/Send", `"class":"TASK_CLASS_LIVE"`, `"class":"FAST"`, "bad_request"},
	{"TaskService/Send", `{"text":"x"}`, `{"raw":"not base64!"}`, "bad_request"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x","raw":"eA=="}`, "bad_request"},
	{"TaskService/Send", `{"text":"x"}`, `null`, "bad_request"},
	{"TaskService/Send", `{"parts"`, `[{"parts"`, "bad_request"},
	{"TaskService/Send", `"waitMs":"1000"}`, `"waitMs":"1000"`, "bad_request"},
	{"AgentService/List", `{}`, ``, "bad_request"},
	{"AgentService/List", `{}`, `null`, "bad_request"},
	{"AgentService/List", `{}`, `[]`, "bad_request"},
	{"AgentService/List", `{}`, `{}{}`, "bad_request"},
	{"AgentService/List", `{}`, strings.Repeat("[", 100_000), "bad_request"},
	{"MailService/Ack", `"1"`, `"-1"`, "bad_request"},
	{"TaskService/List", `"pageSize":10`, `"pageSize":-1`, "bad_request"},

	// Who.
	{"TaskService/Send", `"to":"alice"`, `"as":"bob","to":"alice"`, "unknown_agent"},
	{"TaskService/Send", `"to":"alice"`, `"as":"` + string(bob) + `","to":"alice"`, "unknown_agent"},
	{"TaskService/Send", `"to":"alice"`, `"as":"did:key:z6Mk","to":"alice"`, "bad_did"},
	{"TaskService/Send", `"to":"alice"`, `"to":"alise"`, "unknown_agent"},
	{"TaskService/Send", `"to":"alice"`, `"to":"did:web:example.com"`, "bad_did"},
	{"TaskService/Send", `"to":"alice"`, `"to":"` + string(bob) + `#key"`, "bad_did"},
	{"TaskService/Send", `"to":"alice"`, `"to":"` + strings.ToUpper(string(bob)) + `"`, "unknown_agent"},
	{"TaskService/Send", `"to":"alice"`, `"to":"` + strings.Repeat("a", 65) + `"`, "field_too_long"},
	{"TaskService/Send", `"to":"alice"`, `"to":"a\u0007"`, "bad_text"},
	{"TaskService/Send", `"to":"alice"`, `"to":"a\u202eb"`, "bad_text"},
	{"TaskService/Send", `"to":"alice","skill":"ocr",`, ``, "field_missing"},
	{"AgentService/Resolve", `"alice"`, `""`, "field_missing"},
	{"AgentService/Resolve", `"alice"`, `"nobody"`, "unknown_agent"},
	{"AgentService/Remove", `"alice"`, `""`, "field_missing"},
	{"AgentService/Remove", `"alice"`, `"` + string(bob) + `"`, "unknown_agent"},
	{"AgentService/Refresh", `"alice"`, `"` + string(bob) + `"`, "unknown_agent"},
	{"MailService/Inbox", `"alice"`, `"nobody"`, "unknown_agent"},
	{"MailService/Ack", `"alice"`, `"nobody"`, "unknown_agent"},
	{"NodeService/Ping", string(bob), ``, "field_missing"},
	{"NodeService/Ping", string(bob), `12D3KooW`, "unknown_agent"},
	{"TaskService/Get", string(bob), `did:key:zzz`, "bad_did"},
	{"TaskService/Get", string(bob), `nobody`, "unknown_agent"},
	{"WorkerService/Report", string(bob), `did:key:zzz`, "bad_did"},

	// What.
	{"TaskService/Send", `"ocr"`, `"OCR"`, "bad_capability"},
	{"TaskService/Send", `"ocr"`, `"a b"`, "bad_capability"},
	{"TaskService/Send", `"ocr"`, `"` + strings.Repeat("a", 65) + `"`, "bad_capability"},
	{"AgentService/Find", `"ocr"`, `"-x"`, "bad_capability"},
	{"AgentService/Find", `"capability":"ocr",`, ``, "bad_query"},
	{"AgentService/Find", `"capability":"ocr"`, `"capability":"ocr","text":"x"`, "bad_query"},
	{"AgentService/Find", `"capability":"ocr"`, `"text":"  "`, "bad_query"},
	{"AgentService/Find", `"capability":"ocr"`, `"text":"a\u001bb"`, "bad_text"},
	{"AgentService/Find", `"capability":"ocr"`, `"text":"` + strings.Repeat("x", 1025) + `"`, "field_too_long"},
	{"AgentService/Find", `"limit":5`, `"limit":101`, "bad_page_size"},

	// Ids and keys.
	{"TaskService/Get", `"t1"`, `""`, "field_missing"},
	{"TaskService/Get", `"t1"`, `"t 1"`, "bad_text"},
	{"TaskService/Get", `"t1"`, `"t\n1"`, "bad_text"},
	{"TaskService/Get", `"t1"`, `"` + strings.Repeat("t", 129) + `"`, "field_too_long"},
	{"TaskService/Get", `"t1"`, `"t2"`, "unknown_task"},
	{"TaskService/Cancel", `"t1"`, `""`, "field_missing"},
	{"TaskService/Cancel", `"t1"`, `"t2"`, "task_terminal"},
	{"TaskService/Reply", `"t1"`, `""`, "field_missing"},
	{"TaskService/Receipt", `"t1"`, `""`, "field_missing"},
	{"TaskService/Send", `"r1"`, `"` + strings.Repeat("r", 129) + `"`, "field_too_long"},
	{"TaskService/Send", `"r1"`, `"r\t"`, "bad_text"},
	{"TaskService/Send", `"c1"`, `"` + strings.Repeat("c", 129) + `"`, "field_too_long"},
	{"TaskService/Reply", `"r"`, `"\u0000"`, "bad_text"},
	{"TaskService/Send", `"parts":[`, `"messageId":"\u0000","parts":[`, "bad_text"},
	{"TaskService/Send", `"parts":[`, `"extensions":["a b"],"parts":[`, "bad_text"},
	{"TaskService/Send", `"parts":[`, `"referenceTaskIds":["` + strings.Repeat("t", 129) + `"],"parts":[`, "field_too_long"},
	{"TaskService/Send", `"parts":[`, `"referenceTaskIds":[` + strings.Repeat(`"t",`, 1024) + `"t"],"parts":[`, "too_many"},
	{"WorkerService/Report", `"sess"`, `""`, "field_missing"},
	{"WorkerService/Report", `"sess"`, `"x"`, "not_assigned"},
	{"WorkerService/Report", `"sess"`, `"` + strings.Repeat("s", 129) + `"`, "field_too_long"},
	{"WorkerService/Report", `"t1"`, `""`, "field_missing"},
	{"WorkerService/Heartbeat", `"sess"`, `""`, "field_missing"},
	{"WorkerService/Heartbeat", `"sess"`, `"x"`, "unknown_session"},

	// Times, sizes, enums.
	{"TaskService/Send", `"timeoutMs":"1000"`, `"timeoutMs":"-1"`, "bad_duration"},
	{"TaskService/Send", `"timeoutMs":"1000"`, `"timeoutMs":"9223372036854775807"`, "bad_duration"},
	{"TaskService/Send", `"ttlMs":"1000"`, `"ttlMs":"-9223372036854775808"`, "bad_duration"},
	{"TaskService/Send", `"ttlMs":"1000"`, `"ttlMs":"2592000001"`, "bad_duration"},
	{"TaskService/Send", `"waitMs":"1000"`, `"waitMs":"-5"`, "bad_duration"},
	{"TaskService/Send", `"class":"TASK_CLASS_LIVE"`, `"class":9`, "bad_enum"},
	{"TaskService/Get", `"TASK_ROLE_DOING"`, `-3`, "bad_enum"},
	{"TaskService/List", `"TASK_ROLE_ASKED"`, `3`, "bad_enum"},
	{"TaskService/List", `"TASK_STATE_WORKING"`, `99`, "bad_enum"},
	{"TaskService/List", `"pageSize":10`, `"pageSize":101`, "bad_page_size"},
	{"TaskService/List", `"pageSize":10`, `"pageSize":4294967295`, "bad_page_size"},
	{"TaskService/List", `"x"`, `"` + strings.Repeat("x", 513) + `"`, "field_too_long"},
	{"TaskService/List", `"x"`, `"\u0001"`, "bad_text"},
	{"TaskService/List", `"c"`, `"` + strings.Repeat("x", 129) + `"`, "field_too_long"},
	{"MailService/Inbox", `"pageSize":10`, `"pageSize":1001`, "bad_page_size"},
	{"MailService/Ack", `["1","2"]`, `[]`, "field_missing"},
	{"MailService/Ack", `["1","2"]`, `[` + strings.Repeat(`1,`, 10_000) + `1]`, "too_many"},
	{"NodeService/DeadLetters", `"pageSize":10`, `"pageSize":1001`, "bad_page_size"},
	{"NodeService/DeadLetters", `"x"`, `"` + strings.Repeat("x", 513) + `"`, "field_too_long"},
	{"NodeService/Join", `"shoal:x"`, `""`, "field_missing"},
	{"NodeService/Join", `"shoal:x"`, `" \n "`, "field_missing"},
	{"NodeService/Join", `"shoal:x"`, `"shoal:x y"`, "bad_text"},
	{"NodeService/Join", `"shoal:x"`, `"` + strings.Repeat("x", 4097) + `"`, "field_too_long"},
	{"NodeService/Backup", `"/tmp/x"`, `""`, "field_missing"},
	{"NodeService/Backup", `"/tmp/x"`, `"tmp/x"`, "bad_path"},
	{"NodeService/Backup", `"/tmp/x"`, `"/tmp/../x"`, "bad_path"},
	{"NodeService/Backup", `"/tmp/x"`, `"/tmp/x\u0000"`, "bad_text"},

	// Messages.
	{"TaskService/Send", `"message":{"parts":[{"text":"x"}]},`, ``, "field_missing"},
	{"TaskService/Send", `[{"text":"x"}]`, `[]`, "field_missing"},
	{"TaskService/Send", `{"text":"x"}`, `{}`, "field_missing"},
	{"TaskService/Send", `{"text":"x"}`, `{"url":""}`, "field_missing"},
	{"TaskService/Send", `{"text":"x"}`, `{"url":"http://a b"}`, "bad_text"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":[1]}`, "data_not_object"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":null}`, "data_not_object"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":` + nested(33) + `}`, "nesting_too_deep"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}}`, "nesting_too_deep"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":` + nested(9_000) + `}`, "nesting_too_deep"},
	{"TaskService/Send", `{"text":"x"}`, `{"data":` + nested(50_000) + `}`, "bad_request"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x","metadata":` + nested(33) + `}`, "nesting_too_deep"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x","metadata":{"a":"` + strings.Repeat("x", 4096) + `"}}`, "field_too_long"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x","filename":"` + strings.Repeat("x", 256) + `"}`, "field_too_long"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x","mediaType":"a\nb"}`, "bad_text"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"x"}` + strings.Repeat(`,{"text":"x"}`, 1024), "too_many"},
	{"TaskService/Send", `{"text":"x"}`, `{"text":"` + strings.Repeat("x", 1<<20) + `"}`, "message_too_large"},
	{"TaskService/Send", `"parts":[`, `"role":7,"parts":[`, "bad_enum"},
	{"TaskService/Send", `"parts":[`, `"metadata":` + nested(33) + `,"parts":[`, "nesting_too_deep"},
	{"TaskService/Reply", `"message":{"parts":[{"text":"x"}]}`, `"message":{}`, "field_missing"},

	// Reports.
	{"WorkerService/Report", `"TASK_STATE_COMPLETED"`, `"TASK_STATE_SUBMITTED"`, "bad_state"},
	{"WorkerService/Report", `"TASK_STATE_COMPLETED"`, `"TASK_STATE_UNSPECIFIED"`, "bad_state"},
	{"WorkerService/Report", `"TASK_STATE_COMPLETED"`, `77`, "bad_enum"},
	{"WorkerService/Report", `"status":`, `"chunk":{"artifactId":"a","text":"x"},"status":`, "bad_report"},
	{"WorkerService/Report", `[{"text":"x"}]}},`, `[]}},`, "field_missing"},
	{"WorkerService/Report", `"artifactId":"a"`, `"artifactId":"a b"`, "bad_text"},
	{"WorkerService/Report", `"name":"n"`, `"name":"\u0007"`, "bad_text"},
	{"WorkerService/Report", `"name":"n"`, `"description":"` + strings.Repeat("x", 1025) + `"`, "field_too_long"},
	{"WorkerService/Report", `"name":"n"`, `"metadata":` + nested(40), "nesting_too_deep"},
	{"WorkerService/Report", `"artifacts":[`, `"artifacts":[` + strings.Repeat(`{"parts":[{"text":"x"}]},`, 256), "too_many"},
}

// badReports replace a whole report.
var badReports = map[string]string{
	`{"session":"sess","taskId":"t1"}`:                                                                             "bad_report",
	`{"session":"sess","taskId":"t1","chunk":{"text":"x"}}`:                                                        "field_missing",
	`{"session":"sess","taskId":"t1","chunk":{"artifactId":"a b","text":"x"}}`:                                     "bad_text",
	`{"session":"sess","taskId":"t1","chunk":{"artifactId":"a","offset":"-1","text":"x"}}`:                         "bad_offset",
	`{"session":"sess","taskId":"t1","chunk":{"artifactId":"a","text":"` + strings.Repeat("x", maxChunk+1) + `"}}`: "field_too_long",
	`{"session":"sess","taskId":"t1","artifacts":[{"artifactId":"a"}]}`:                                            "field_missing",
	`{"session":"sess","taskId":"t1","artifacts":[{"parts":[{"data":"x"}]}]}`:                                      "data_not_object",
}

func TestBadInputIsOneClearError(t *testing.T) {
	r := start(t, &fake{}, nil)
	hc := r.http(true, false)
	for method, body := range good {
		if code, got := r.curl(t, hc, "/shoal.v1."+method, body); code != 200 {
			t.Fatalf("control %s: %d %s", method, code, got)
		}
	}
	reasons := map[string]int{}
	check := func(method, what, body, want string) {
		t.Helper()
		before := r.fake.called()
		code, got := r.curl(t, hc, "/shoal.v1."+method, body)
		info := errorInfo(t, got)
		if code == 200 || info.GetReason() != want {
			t.Errorf("%s %.80s: got %d %.300s, want %s", method, what, code, got, want)
		}
		// What the fakes themselves refuse has no hint of ours.
		fromService := want == "unknown_task" || want == "task_terminal" || want == "not_assigned" || want == "unknown_session"
		if !fromService && (r.fake.called() != before || info.GetHint() == "") {
			t.Errorf("%s %.80s: hint %q, %d service calls", method, what, info.GetHint(), r.fake.called()-before)
		}
		reasons[want]++
	}
	for _, c := range bad {
		if strings.Count(good[c.method], c.old) == 0 {
			t.Fatalf("%s has no %s", c.method, c.old)
		}
		check(c.method, c.new, strings.Replace(good[c.method], c.old, c.new, 1), c.want)
	}
	for body, want := range badReports {
		check("WorkerService/Report", body, body, want)
	}
	total := 0
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		t.Logf("%-20s %d", reason, reasons[reason])
		total += reasons[reason]
	}
	t.Logf("%d bad requests, each one change to an accepted one, 0 accepted", total)
}

func errorInfo(t *testing.T, body string) *shoalv1.ErrorInfo {
	t.Helper()
	_, after, ok := strings.Cut(body, `"debug":`)
	if !ok {
		t.Fatalf("no details in %.300s", body)
	}
	after = strings.TrimSuffix(after, `}]}`)
	info := &shoalv1.ErrorInfo{}
	if err := protojson.Unmarshal([]byte(after), info); err != nil {
		t.Fatalf("%.300s: %v", body, err)
	}
	return info
}

// TestBadBinaryInput is the same for what JSON cannot say.
func TestBadBinaryInput(t *testing.T) {
	r := start(t, &fake{}, nil)
	wire, err := proto.Marshal(&shoalv1.GetRequest{Id: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"control":          {wire, ""},
		"future field":     {append(wire[:len(wire):len(wire)], 0xf8, 0x07, 1), ""},
		"cut short":        {wire[:len(wire)-1], "bad_request"},
		"huge length":      {[]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, "bad_request"},
		"endless varint":   {[]byte{0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "bad_request"},
		"bad utf8":         {[]byte{0x0a, 2, 'a', 0xff}, "bad_request"},
		"bad tag":          {[]byte{0}, "bad_request"},
		"unclosed group":   {[]byte{0x2b}, "bad_request"},
		"deep groups":      {[]byte(strings.Repeat("\x2b", 20_000)), "bad_request"},
		"our own note":     {append([]byte{0xfa, 0xff, 0xff, 0xff, 0x0f}, "\x02hi"...), "bad_request"},
		"our other note":   {[]byte{0xf2, 0xff, 0xff, 0xff, 0x0f, 0}, "message_too_large"},
		"unknown and huge": {append([]byte{0xfa, 0x07, 0x80, 0x80, 0x80, 0x01}, make([]byte, 2<<20)...), "message_too_large"},
	} {
		code, got := r.post(t, r.http(true, false), "/shoal.v1.TaskService/Get", "application/proto", c.body)
		if c.want == "" && code == 200 {
			continue
		}
		if code != 400 || c.want == "" || errorInfo(t, got).GetReason() != c.want {
			t.Errorf("%s: got %d %.200q, want %s", name, code, got, c.want)
		}
	}
}

// TestNotBuilt: what node left out refuses with a reason.
func TestNotBuilt(t *testing.T) {
	f := &fake{}
	s := New(Config{}, Services{Node: f, Agents: f, Directory: f, Tasks: f, Steps: f, Workers: f}, discard())
	r := &running{t: t, server: s, fake: f}
	for _, method := range []string{"NodeService/Shutdown", "NodeService/Backup", "NodeService/DeadLetters", "MailService/Inbox", "MailService/Ack"} {
		code, got := r.direct(t, s.Handler(true), "/shoal.v1."+method, good[method])
		if code != 501 || errorInfo(t, got).GetReason() != "not_available" {
			t.Errorf("%s: %d %s", method, code, got)
		}
	}
}

// TestGoodInputArrives checks that fields reach the services as they were given.
func TestGoodInputArrives(t *testing.T) {
	r := start(t, &fake{}, nil)
	for _, method := range slices.Sorted(maps.Keys(good)) {
		r.curl(t, r.http(true, false), "/shoal.v1."+method, good[method])
	}
	req := r.fake.requests[0]
	if got, want := fmt.Sprintln(req.From, req.To, req.Skill, req.IdempotencyKey, req.ContextID, req.Timeout, req.TTL, req.Class),
		fmt.Sprintln(own, alice, "ocr", "r1", "c1", "1s", "1s", "live"); got != want {
		t.Errorf("send arrived as %s, want %s", got, want)
	}
	rep := r.fake.reports[0]
	if rep.Key.ID != "t1" || rep.Key.Requester != bob || rep.State != "TASK_STATE_COMPLETED" || rep.Message.Role != "ROLE_AGENT" ||
		len(rep.Artifacts) != 1 || rep.Artifacts[0].Name != "n" {
		t.Errorf("report arrived as %+v", rep)
	}
	q := r.fake.queries[0]
	if q.Capability != "ocr" || q.Limit != 5 || q.Text != "" {
		t.Errorf("find arrived as %+v", q)
	}
	if fmt.Sprint(r.fake.joined, r.fake.removed, r.fake.acked) != fmt.Sprint([]string{"shoal:x"}, []any{alice}, []int{1, 2}) {
		t.Errorf("arrived: %v %v %v", r.fake.joined, r.fake.removed, r.fake.acked)
	}
	_, body := r.curl(t, r.http(true, false), "/shoal.v1.AgentService/Find", `{"capability":"a2a:v1:cap:ocr"}`)
	for _, want := range []string{`"workers":2`, `"seq":"7"`, `"cardJson"`, `"did":"` + string(bob) + `"`} {
		if !strings.Contains(body, want) {
			t.Errorf("find: %s lacks %s", body, want)
		}
	}
	if strings.Contains(body, `"signatures"`) {
		t.Errorf("find: %s has signatures that fit nothing", body)
	}
	_, body = r.curl(t, r.http(true, false), "/shoal.v1.NodeService/Ping", `{"agent":"`+string(own)+`"}`)
	if strings.Contains(body, `"reachable":true`) || !strings.Contains(body, string(own.Node())) {
		t.Errorf("ping of a silent node: %s", body)
	}
}
