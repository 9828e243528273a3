// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/imsprep/imsprep/pkg/ims"
)

// profile is what a profile file says.
type profile struct {
	Credentials
	region, projectID, iamEndpoint string
	agency                         *ims.Agency // nil if the keys are used as they are
}

// maxProfile bounds the files that are read.
const maxProfile = 1 << 20

// profile reads the first profile file that has credentials: one that is named by --profile or in
// the environment, else those in the user's home. A file that was named must be usable; one that
// just lies there need not, but why not is remembered for the error that ends without any.
func (o *Sources) profile() (p *profile, skipped error, err error) {
	if name := cmp.Or(o.Options.Profile, o.Getenv("HW_PROFILE")); name != "" || o.Getenv("HW_SHARED_CONFIG_FILE") != "" {
		path := cmp.Or(o.Getenv("HW_SHARED_CONFIG_FILE"), o.home(".hcloud", "config.json"))
		if path == "" {
			return nil, nil, usagef("the profile %q is asked for, but there is no home folder to look in: set HW_SHARED_CONFIG_FILE", name)
		}
		p, err := watch(path, func(path string) (*profile, error) { return readKooCLI(path, name) })
		return p, nil, named(path, err)
	}
	if path := o.Getenv("HUAWEICLOUD_SDK_CREDENTIALS_FILE"); path != "" {
		p, err := watch(path, readCredentialsFile)
		return p, nil, named(path, err)
	}
	var reasons []error
	for _, f := range []struct {
		path string
		read func(string) (*profile, error)
	}{
		{o.home(".huaweicloud", "credentials"), readCredentialsFile},
		{o.home(".hcloud", "config.json"), func(path string) (*profile, error) { return readKooCLI(path, "") }},
	} {
		if f.path == "" {
			continue
		}
		p, err := watch(f.path, f.read)
		if err == nil {
			return p, nil, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			reasons = append(reasons, named(f.path, err))
		}
	}
	return nil, errors.Join(reasons...), nil
}

// named says which file it was.
func named(path string, err error) error {
	var pathErr *fs.PathError
	if err == nil || errors.As(err, &pathErr) {
		return err
	}
	return &UsageError{fmt.Errorf("profile file %s: %w", path, err)}
}

// home is a path in the user's home, or empty.
func (o *Sources) home(elements ...string) string {
	home := o.Getenv("HOME", "USERPROFILE")
	if home == "" {
		return ""
	}
	return filepath.Join(append([]string{home}, elements...)...)
}

func readProfile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("it isn't a file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxProfile+1))
	if err == nil && len(data) > maxProfile {
		err = errors.New("it is too long for a profile file")
	}
	return data, err
}

// readCredentialsFile reads the vendor's SDKs' file: lines KEY = VALUE in the section [basic].
func readCredentialsFile(path string) (*profile, error) {
	data, err := readProfile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	section := ""
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[' && line[len(line)-1] == ']':
			section = strings.ToLower(strings.TrimSpace(line[1 : len(line)-1]))
		default:
			// The line itself may be a secret: it is not repeated in an error.
			name, value, ok := strings.Cut(line, "=")
			if ok && section == "basic" {
				values[strings.ToLower(strings.TrimSpace(name))] = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
	}
	p := &profile{projectID: values["project_id"], iamEndpoint: values["iam_endpoint"]}
	p.accessKey, p.secretKey, p.securityToken = values["ak"], values["sk"], values["security_token"]
	if p.accessKey == "" || p.secretKey == "" {
		return nil, errors.New("there is no ak with its sk in the section [basic]")
	}
	return p, nil
}

// kooConfig is the configuration of KooCLI, as far as it matters here.
type kooConfig struct {
	Current  string       `json:"current"`
	Profiles []kooProfile `json:"profiles"`
}

type kooKeys struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
	SecurityToken   string `json:"securityToken"`
}

type kooProfile struct {
	Name string `json:"name"`
	Mode string `json:"mode"`
	kooKeys
	Region           string `json:"region"`
	ProjectID        string `json:"projectId"`
	AgencyName       string `json:"agencyName"`
	AgencyDomainName string `json:"agencyDomainName"`
	AgencyDomainID   string `json:"agencyDomainId"`
	SSOAuth          struct {
		STSToken kooKeys `json:"stsToken"`
	} `json:"ssoAuth"`
}

// plainKey is what keys look like that are not encrypted. That is a guess: what KooCLI writes when it
// encrypts is not documented, and nothing in the file says that it did. Keys that are taken for plain
// ones by mistake are refused by the cloud.
var plainKey = regexp.MustCompile(`^[A-Za-z0-9]{8,64}$`)

// readKooCLI reads one profile, the current one if name is empty.
func readKooCLI(path, name string) (*profile, error) {
	data, err := readProfile(path)
	if err != nil {
		return nil, err
	}
	var c kooConfig
	if json.Unmarshal(data, &c) != nil {
		return nil, errors.New("it isn't a configuration of KooCLI") // the decoder would repeat what it read
	}
	name = cmp.Or(name, c.Current, "default")
	for _, k := range c.Profiles {
		if k.Name != name {
			continue
		}
		keys := k.kooKeys
		if strings.EqualFold(k.Mode, "SSO") {
			keys = k.SSOAuth.STSToken
		}
		switch {
		case k.AgencyName != "" && k.AgencyDomainName == "" && k.AgencyDomainID == "":
			return nil, fmt.Errorf("the profile %q goes through the agency %q, but doesn't name the account that made it", name, k.AgencyName)
		case keys.AccessKeyID == "" || keys.SecretAccessKey == "":
			return nil, fmt.Errorf("the profile %q has no access key with its secret", name)
		case !plainKey.MatchString(keys.AccessKeyID) || !plainKey.MatchString(keys.SecretAccessKey):
			return nil, fmt.Errorf("the keys of the profile %q are encrypted by KooCLI: run `hcloud configure set --cli-auth-encrypt=false`, or set HW_ACCESS_KEY and HW_SECRET_KEY", name)
		}
		p := &profile{region: k.Region, projectID: k.ProjectID}
		p.accessKey, p.secretKey, p.securityToken = keys.AccessKeyID, keys.SecretAccessKey, keys.SecurityToken
		if k.AgencyName != "" {
			p.agency = &ims.Agency{Name: k.AgencyName, DomainName: k.AgencyDomainName, DomainID: k.AgencyDomainID}
		}
		return p, nil
	}
	return nil, fmt.Errorf("there is no profile %q", name)
}

// metadataOff as the endpoint keeps the metadata service from being asked.
const metadataOff = "off"

// metadata is where a server of the cloud gets keys from; nothing, if it isn't to be asked.
func (o *Sources) metadata() Credentials {
	endpoint := o.Getenv("IMSPREP_METADATA_ENDPOINT")
	if endpoint == metadataOff {
		return Credentials{}
	}
	return Credentials{
		keys:   ims.MetadataKeys(ims.MetadataOptions{Endpoint: endpoint}),
		source: "the metadata service " + cmp.Or(endpoint, ims.DefaultMetadataEndpoint),
	}
}

// fileKeys are the keys of a profile file. It is read again when it changes, and when its keys are
// refused: whoever renews keys writes them there while a long run goes on.
type fileKeys struct {
	path string
	read func(path string) (*profile, error)

	mu    sync.Mutex
	info  fs.FileInfo // of the file that was read
	keys  ims.Credentials
	stale bool
}

// watch reads a profile file and goes on looking at it.
func watch(path string, read func(path string) (*profile, error)) (*profile, error) {
	k := &fileKeys{path: path, read: read}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	p, err := read(path)
	if err != nil {
		return nil, err
	}
	k.take(info, p)
	p.keys, p.source = k, "the profile file "+path
	return p, nil
}

func (k *fileKeys) take(info fs.FileInfo, p *profile) {
	// The file was looked at before it was read: a change in between is found the next time.
	k.info, k.stale = info, false
	k.keys = ims.Credentials{AccessKey: p.accessKey, SecretKey: p.secretKey, SecurityToken: p.securityToken}
}

// Credentials implements ims.KeySource.
func (k *fileKeys) Credentials(context.Context) (ims.Credentials, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.path)
	if err != nil || !k.stale && os.SameFile(info, k.info) && info.ModTime().Equal(k.info.ModTime()) && info.Size() == k.info.Size() {
		return k.keys, nil
	}
	// A file that is half written or gone doesn't take away what may still be good.
	if p, err := k.read(k.path); err == nil {
		k.take(info, p)
	}
	return k.keys, nil
}

// Refused implements ims.KeySource.
func (k *fileKeys) Refused(c ims.Credentials) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stale = k.stale || k.keys == c
}
