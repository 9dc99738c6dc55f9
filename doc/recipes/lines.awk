# Takes result lines apart: PLACE WORD KEY VALUE ... cause CAUSE
/^echomux: / {
	cause = ""
	if (start = index($0, " error=\"")) {
		cause = substr($0, start + 8, length($0) - start - 8)
		$0 = substr($0, 1, start - 1)
	}
	printf "%s %s", $2, $3
	for (i = 4; i <= NF; i++) { split($i, pair, "="); printf " %s %s", pair[1], pair[2] }
	print " cause " cause
}
