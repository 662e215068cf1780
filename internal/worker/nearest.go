package worker

import (
	"slices"
	"strings"
)

const maxSuggest = 3

// suggest returns a hint that names those of known that word was probably meant to be,
// or otherwise if none is near.
func suggest(word string, known []string, otherwise string) string {
	if len(word) > maxName {
		return otherwise
	}
	limit := 1 + len(word)/4
	type hit struct {
		name string
		cost int
	}
	var hits []hit
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d <= limit {
			hits = append(hits, hit{k, d})
		}
	}
	if len(hits) == 0 {
		return otherwise
	}
	slices.SortStableFunc(hits, func(a, b hit) int { return a.cost - b.cost })
	names := make([]string, 0, maxSuggest)
	for _, h := range hits[:min(len(hits), maxSuggest)] {
		names = append(names, h.name)
	}
	return "did you mean " + strings.Join(names, " or ") + "?"
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := diagonal
			if a[i-1] != b[j-1] {
				replace++
			}
			diagonal = row[j]
			row[j] = min(row[j]+1, row[j-1]+1, replace)
		}
	}
	return row[len(b)]
}
