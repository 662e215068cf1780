package cli

import (
	"slices"
	"strings"
)

// nearest returns up to three of names that one could have meant by typed, best first.
func nearest(typed string, names []string) []string {
	type hit struct {
		name string
		d    int
	}
	limit := max(1, min(3, len(typed)/2))
	typed = strings.ToLower(typed)
	var hits []hit
	for _, n := range names {
		d := distance(typed, strings.ToLower(n))
		// The start of a name is a likely slip at any length.
		if len(typed) >= 2 && strings.HasPrefix(n, typed) {
			d = min(d, 1)
		}
		if d <= limit {
			hits = append(hits, hit{n, d})
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, h := range hits[:min(3, len(hits))] {
		out = append(out, h.name)
	}
	return out
}

// distance counts the single edits (insert, delete, replace, swap of neighbours) that
// turn a into b: the optimal string alignment distance. Long input is cut: it comes
// from the command line and is no near miss of anything.
func distance(a, b string) int {
	const long = 64
	a, b = a[:min(len(a), long)], b[:min(len(b), long)]
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}

// didYouMean phrases names for a hint; "" when there are none.
func didYouMean(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(names, ", ") + "? "
}
