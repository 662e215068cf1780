//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	a2apb "github.com/a2aproject/a2a-go/v2/a2apb/v1"

	"github.com/shoalmesh/shoal/agent"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

const (
	diskSize  = 24 << 20
	diskTasks = 500 // at fraction 1, before the disk is full
)

// TestFullDiskLosesNothing fills the disk under an asker's home. What was acknowledged
// stays, what is not acknowledged is refused clearly, and with room it goes on by itself.
func TestFullDiskLosesNothing(t *testing.T) {
	disk := smallDisk(t)
	b := startDaemon(t, "doer")
	a := newDaemon(t, "asker", filepath.Join(disk, "home"))
	a.start()
	a.join(b)
	w := attach(t, b, agent.Config{Name: "worker", Skills: skills("work"), Concurrency: 8}, echo)
	acked := map[string]string{}
	for i := range scaled(diskTasks, 20) {
		key := fmt.Sprint("before-", i)
		id, err := submit(t, a, w.did, key)
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		acked[key] = id
	}

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	refused, odd, took := map[string]int{}, 0, 0
	var first *connect.Error
	for i := range 200 {
		key := fmt.Sprint("full-", i)
		id, err := submit(t, a, w.did, key)
		if err == nil {
			acked[key] = id // there was room in pages that it has
			took++
			continue
		}
		var ce *connect.Error
		if !errors.As(err, &ce) {
			odd++
			t.Errorf("%s: %v", key, err)
			continue
		}
		if first == nil {
			first = ce
		}
		refused[reasonOfError(ce)]++
		if refused["disk_full"] >= 20 {
			break
		}
	}
	if refused["disk_full"] == 0 {
		t.Fatalf("the full disk was not felt: %d tasks were taken, refused %v", took, refused)
	}
	t.Logf("full: first refusal %v: %q; refused by reason %v, otherwise %d, still taken %d", first.Code(), first.Message(), refused, odd, took)
	if len(refused) != 1 {
		t.Errorf("refused for other reasons than disk_full: %v", refused)
	}
	out, said, code := cli(t, a.home, "task", "send", "--to", w.did, "--skill", "work", "-o", "json", strings.Repeat("x", 4096))
	var d struct{ Kind, Reason, Hint string }
	if err := json.Unmarshal([]byte(said), &d); err != nil || code != 1 || d.Reason != "disk_full" || d.Kind != "exhausted" || d.Hint == "" {
		t.Errorf("the command line on a full disk: exit %d, %q %q; want 1 and disk_full with a hint", code, out, said)
	}
	if _, said, code := cli(t, a.home, "status"); code != 0 {
		t.Errorf("status on a full disk exits %d: %s", code, said)
	}
	checkKnown(t, a, acked, "while the disk is full")

	// A crash on a full disk: it comes back once there is room.
	a.kill()
	err := a.tryStart()
	t.Logf("kill -9 and start on the full disk: %v", orReady(err, a))
	if err != nil && !strings.Contains(a.log.tail(5), "disk") && !strings.Contains(a.log.tail(5), "space") {
		t.Errorf("it does not say that the disk is full: %s", a.log.tail(5))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		a.start()
	}
	eventually(t, 20*time.Second, "tasks are taken again when there is room", func() bool {
		id, err := submit(t, a, w.did, "after")
		if err == nil {
			acked["after"] = id
		}
		return err == nil
	})
	roundTrip(t, a, w.did, "work", "after all")
	checkKnown(t, a, acked, "with room again")
	tasks := drain(t, a, acked)
	completed := 0
	for _, rec := range tasks {
		if stateOf(rec) == a2apb.TaskState_TASK_STATE_COMPLETED {
			completed++
		}
	}
	t.Logf("acknowledged %d, lost %d of %d, COMPLETED %d of %d", len(acked), len(acked)-len(tasks), len(acked), completed, len(acked))
	if completed != len(acked) {
		t.Errorf("COMPLETED %d of %d", completed, len(acked))
	}
}

func orReady(err error, d *daemon) any {
	if err != nil {
		return err
	}
	return fmt.Sprintf("ready in %.0f ms", d.ready.ReadyMS)
}

// smallDisk mounts a tmpfs of diskSize for the test.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := tempHome(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", diskSize)); err != nil {
		t.Skipf("cannot mount a tmpfs of %d MiB (%v): run as root with CAP_SYS_ADMIN to see what a full disk does", diskSize>>20, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill writes a file until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		block := make([]byte, size)
		for {
			if _, err := f.Write(block); err != nil {
				break
			}
		}
	}
}

func submit(t *testing.T, d *daemon, to, key string) (string, error) {
	t.Helper()
	resp, err := d.tasks.Send(ctxFor(t, 20*time.Second), connect.NewRequest(&shoalv1.SendRequest{
		To: to, Skill: "work", Message: textMessage(key + strings.Repeat(" 0123456789", 100)), RequestId: key,
	}))
	if err != nil {
		return "", err
	}
	return resp.Msg.GetTask().GetTask().GetId(), nil
}

func reasonOfError(ce *connect.Error) string {
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if info, ok := v.(*shoalv1.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return ce.Code().String()
}

func checkKnown(t *testing.T, d *daemon, acked map[string]string, when string) {
	t.Helper()
	lost := 0
	for key, id := range acked {
		if _, err := getTask(d, id, "", shoalv1.TaskRole_TASK_ROLE_ASKED); err != nil {
			lost++
			t.Errorf("%s: %s is not known: %v", when, key, err)
		}
	}
	t.Logf("%s: lost %d of %d acknowledged", when, lost, len(acked))
}
