# Compiler launcher: runs its arguments, and keeps what they print in a file named after the object, which follows -o.
for argument; do
  if [ "$previous" = -o ]; then object=$argument; fi
  previous=$argument
done
"$@" >"$object.txt" 2>&1
status=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' "$object.txt"
exit $status
