// Command probe is the only program in the image of the real cluster's own tests: `probe serve` answers HTTP on port 8080
// with the pod's name, `probe get URL` prints an answer, `probe look NAME` prints addresses, `probe read PATH` and `probe
// write PATH` try a file, `probe fill MIB` takes memory.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

const deadline = 3 * time.Second

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, arguments []string) error {
	switch command {
	case "serve":
		return serve()
	case "get":
		return get(arguments[0])
	case "look":
		within, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(within, arguments[0])
		fmt.Println(addresses)
		return err
	case "read":
		content, err := os.ReadFile(arguments[0])
		fmt.Print(string(content))
		return err
	case "write":
		return os.WriteFile(arguments[0], []byte("written\n"), 0o644)
	case "fill":
		return fill(arguments[0])
	}
	return fmt.Errorf("unknown command %q", command)
}

func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println("serving as", name)
	return http.ListenAndServe(":8080", http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(out, name)
	}))
}

func get(url string) error {
	answer, err := (&http.Client{Timeout: deadline}).Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func fill(mebibytes string) error {
	wanted, err := strconv.Atoi(mebibytes)
	if err != nil {
		return err
	}
	taken := make([]byte, wanted<<20)
	for i := 0; i < len(taken); i += 4096 {
		taken[i] = 1
	}
	fmt.Println("took", len(taken)>>20, "MiB")
	return nil
}
