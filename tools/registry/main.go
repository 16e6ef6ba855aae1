// A registry in memory that has the referrers API, for tests: Debian's docker-registry has none.
//
// `registry serve` prints the address that it listens on; `registry version` that of its module.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

const module = "cuelabs.dev/go/oci/ociregistry"

func main() {
	if len(os.Args) != 2 {
		log.Fatal("registry serve|version")
	}
	switch os.Args[1] {
	case "serve":
		serve()
	case "version":
		version()
	default:
		log.Fatalf("%q is neither serve nor version", os.Args[1])
	}
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	server := &http.Server{
		Handler:           ociserver.New(ocimem.New(), nil),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Fatal(server.Serve(listener))
}

func version() {
	info, _ := debug.ReadBuildInfo()
	for _, each := range info.Deps {
		if each.Path == module {
			fmt.Println(each.Version)
		}
	}
}
