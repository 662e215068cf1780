//go:build !unix

package mail_test

import "time"

func cpuTime() time.Duration { return 0 }
