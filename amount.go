package shoal

import "fmt"

// Amount is money in micro-units of the network's currency: 1_000_000 is one unit.
// It is never negative where it names a price. There are no floats in money.
type Amount int64

// String returns the amount in units with six decimals, "1.250000".
func (a Amount) String() string {
	sign := ""
	u := uint64(a)
	if a < 0 {
		sign, u = "-", uint64(-a)
	}
	return fmt.Sprintf("%s%d.%06d", sign, u/1_000_000, u%1_000_000)
}
