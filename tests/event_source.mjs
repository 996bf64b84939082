// The npm package `eventsource`, as its readme uses it. Prints what it is given, a JSON document for each event.
// Arguments: the package's module, the address, the names to listen to (`message`: the unnamed ones), and the event
// after which to stop, as a piece of its data; without one it stops when the server says that there is no more (204).
const [module, url, names, last] = process.argv.slice(2)
const { EventSource } = await import(module)
const source = new EventSource(url)

for (const name of names.split(',')) {
  source.addEventListener(name, (event) => {
    console.log(JSON.stringify({ type: event.type, data: event.data, id: event.lastEventId }))
    if (last && event.data.includes(last)) source.close()
  })
}
source.addEventListener('error', (event) => {
  if (source.readyState === EventSource.CLOSED) console.error(`closed: ${event.code}`)
})
