"""From files to EditRequests: CounterFact's schema, bundled examples, suggestions from bundled facts."""
