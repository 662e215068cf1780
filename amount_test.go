package shoal

import (
	"math"
	"math/big"
	"strings"
	"testing"
	"testing/quick"
)

func TestAmountShowsSixDecimals(t *testing.T) {
	for a, want := range map[Amount]string{
		0: "0.000000", 1: "0.000001", 999_999: "0.999999", 1_000_000: "1.000000", 1_250_000: "1.250000",
		-1: "-0.000001", -1_250_000: "-1.250000",
		math.MaxInt64: "9223372036854.775807", math.MinInt64: "-9223372036854.775808",
	} {
		if got := a.String(); got != want {
			t.Errorf("%d: got %q, want %q", int64(a), got, want)
		}
	}
}

// TestAmountLosesNothing: without its dot, the text is the number.
func TestAmountLosesNothing(t *testing.T) {
	same := func(n int64) bool {
		got, ok := new(big.Int).SetString(strings.Replace(Amount(n).String(), ".", "", 1), 10)
		return ok && got.IsInt64() && got.Int64() == n
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}
