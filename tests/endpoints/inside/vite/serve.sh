# Waits to be told, serves, and edits a file when it is told: as an agent would, in the sandbox.
while ! [ -e go ]; do sleep 0.1; done
node /opt/vite/node_modules/vite/bin/vite.js &
while ! [ -e edit ]; do sleep 0.1; done
sed -i s/one/two/ text.js
wait
