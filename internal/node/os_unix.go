//go:build unix

package node

import "golang.org/x/sys/unix"

// modesCount says that file modes keep other users out on this system.
const modesCount = true

// closeProcess keeps keys out of core dumps and new files away from others. It changes
// the whole process, so only a daemon's start calls it.
func closeProcess() {
	unix.Umask(0o077)
	none := unix.Rlimit{}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &none) // refused in some sandboxes; not worth refusing to start
}
