# Prints values of result lines: awk -v keys='rtt_ms peer' -f lines.awk. A value that is missing is
# printed as -. The escapes of texts stay as they are.
{
	delete value
	rest = $0
	while (match(rest, /^[a-z0-9_]+=("([^"\\]|\\.)*"|[^ "]*) ?/)) {
		word = substr(rest, 1, RLENGTH)
		rest = substr(rest, RLENGTH + 1)
		sub(/ $/, "", word)
		key = substr(word, 1, index(word, "=") - 1)
		text = substr(word, index(word, "=") + 1)
		if (text ~ /^"/) text = substr(text, 2, length(text) - 2)
		value[key] = text
	}
	n = split(keys, wanted, " ")
	for (i = 1; i <= n; i++) {
		printf "%s%s", (wanted[i] in value) ? value[wanted[i]] : "-", i < n ? " " : "\n"
	}
}
